"""One file for a whole model: there and back every array, config, tokenizer and picture is the
same, and damage is named.
"""

import json
import re

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from helpers.clip_files import MERGES, VOCABULARY, write_folder
from helpers.commands import run_in_process
from helpers.workdirs import MODELS, items, made, make_workdir, same_arrays
from vqd_jax.config.compatibility import without_local_paths
from vqd_jax.core.errors import UserError
from vqd_jax.data.text.clip import ClipTokenizer
from vqd_jax.inference import loading, pipeline
from vqd_jax.models.weights import exported as own


def failure(name, *args):
    """The sentence with which a command ends."""
    done = run_in_process(name, *args, ok=False)
    assert (
        done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    ), done.stderr
    return done.stderr


def same_workdirs(one, two, stages=("vqvae", "diffusion")):
    for stage in stages:
        (step, first), (again, second) = items(one, stage), items(two, stage)
        assert step == again
        same_arrays(first["weights"], second["weights"])
        config = without_local_paths(first["config"])  # which stay where it was trained
        assert config == second["config"] and first.get("tokenizer") == second.get("tokenizer")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return ClipTokenizer.load(
        write_folder(tmp_path_factory.mktemp("vocabulary"), VOCABULARY, MERGES)
    )


@pytest.mark.parametrize(
    "name",
    ["text", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "text")],  # 5 s each
)
def test_there_and_back_everything_is_the_same(name, vocabulary, tmp_path):
    workdir = make_workdir(
        tmp_path / "run",
        MODELS[name],
        vocabulary if name == "clip" else None,
        converted=name == "none",
        plan=name == "text",
    )
    said = made("export", f"--workdir={workdir}")
    file = tmp_path / "run.safetensors"
    (tmp_path / "new").touch()
    assert file.stat().st_mode == (tmp_path / "new").stat().st_mode
    (tmp_path / "new").unlink()
    assert (
        str(file) in said
        and ("and the plan" if name == "text" else "no plan, as the workdir has none") in said
    )
    made("convert", file, f"--workdir={tmp_path / 'again'}")
    same_workdirs(workdir, tmp_path / "again")
    before, after = pipeline.load(workdir), pipeline.load(tmp_path / "again")
    same_arrays(before.entropy(), after.entropy())
    prompts = {"class": ["1", "3"], "none": ["", ""]}.get(name, ["a red apple", "x"])
    for seed in (0, 1):
        np.testing.assert_array_equal(before(prompts, seed=seed), after(prompts, seed=seed))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "run", "run.safetensors"]


def test_the_file_is_readable_without_this_project(tmp_path):
    workdir = make_workdir(tmp_path / "run", MODELS["none"], converted=True)
    made("export", f"--workdir={workdir}", f"--out={tmp_path / 'new' / 'x.safetensors'}")
    with safe_open(tmp_path / "new" / "x.safetensors", "numpy") as file:
        metadata, names = file.metadata(), set(file.keys())
    weights = items(workdir, "diffusion")[1]["weights"]
    assert {
        "vqvae/codes",
        "vqvae/remap",
        "vqvae/projection/kernel",
        "vqvae/vqvae/last/kernel",
        "diffusion/denoiser/head/kernel",
    } <= names
    assert len(names) == len(jax.tree.leaves((weights, items(workdir, "vqvae")[1]["weights"])))
    assert (
        json.loads(metadata["diffusion.config"])["denoiser"]["layers"] == 2
        and json.loads(metadata["diffusion.step"]) == 9
    )
    assert json.loads(metadata["diffusion.tokenizer"]) == {"kind": "nothing"}


def test_half_precision_stays_and_a_small_workdir_keeps_what_is_there(tmp_path):
    workdir = make_workdir(tmp_path / "run", MODELS["text"], plan=True)
    (workdir / "captions.txt").write_text("a crab\n")
    made("export", f"--workdir={workdir}", "--format=workdir")
    small = tmp_path / "run-small"
    assert (small / "captions.txt").read_text() == "a crab\n"
    _, kept = items(small, "diffusion")
    half = jax.tree.map(lambda x: x.astype(np.float16), items(workdir, "diffusion")[1]["weights"])
    same_arrays(kept["weights"], half)
    same_arrays(loading.read_plan(small), loading.read_plan(workdir))
    made("export", f"--workdir={small}")
    made("convert", tmp_path / "run-small.safetensors", f"--workdir={tmp_path / 'again'}")
    same_workdirs(small, tmp_path / "again")


@pytest.mark.slow  # 8 s
def test_a_codec_alone(tmp_path):
    workdir = make_workdir(tmp_path / "run", {}, stages=())
    assert "a codec alone" in made("export", f"--workdir={workdir}")
    made("convert", tmp_path / "run.safetensors", f"--workdir={tmp_path / 'again'}")
    same_workdirs(workdir, tmp_path / "again", ["vqvae"])
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    codecs = pipeline.load(workdir), pipeline.load(tmp_path / "again")
    np.testing.assert_array_equal(*(model.encode(images) for model in codecs))
    assert "has no denoiser" in failure("export", f"--workdir={workdir}", "--format=diffusers")
    made("export", f"--workdir={workdir}", "--format=workdir")
    assert pipeline.load(tmp_path / "run-small").stage is None


@pytest.mark.parametrize("stages", [("autoregressive",), ("diffusion", "autoregressive")], ids=str)
@pytest.mark.slow  # 22 s
def test_the_autoregressive_baseline_travels_too(stages, tmp_path):
    workdir = make_workdir(
        tmp_path / "run", {"learned_text.width": 12, "learned_text.heads": 3}, stages=stages
    )
    said = made("export", f"--workdir={workdir}")
    assert f"codec and {' and '.join(stages)}, no plan" in said
    made("convert", tmp_path / "run.safetensors", f"--workdir={tmp_path / 'again'}")
    same_workdirs(workdir, tmp_path / "again", ["vqvae", *stages])
    pictures = [
        pipeline.load(w, stage="autoregressive")(["a red apple"])
        for w in (workdir, tmp_path / "again")
    ]
    np.testing.assert_array_equal(*pictures)
    if len(stages) == 1:
        assert "has no denoiser" in failure("export", f"--workdir={workdir}", "--format=diffusers")


def test_nothing_is_written_over(tmp_path):
    workdir = make_workdir(tmp_path / "run", MODELS["text"])
    (tmp_path / "run.safetensors").write_text("mine")
    (tmp_path / "run-diffusers").mkdir()
    (tmp_path / "run-small" / "vqvae").mkdir(parents=True)
    (tmp_path / "run-small" / "vqvae" / "metrics.jsonl").write_text("mine")
    for form, ending in (
        ("safetensors", ".safetensors"),
        ("diffusers", "-diffusers"),
        ("workdir", "-small"),
    ):
        assert f"{tmp_path / 'run'}{ending} exists already" in failure(
            "export", f"--workdir={workdir}", f"--format={form}"
        )
    assert (
        (tmp_path / "run.safetensors").read_text()
        == (tmp_path / "run-small" / "vqvae" / "metrics.jsonl").read_text()
        == "mine"
    )
    assert "must end in .safetensors" in failure(
        "export", f"--workdir={workdir}", f"--out={tmp_path / 'file'}"
    )
    assert "there is no workdir" in failure("export", f"--workdir={tmp_path / 'none'}")
    assert "there is no finished checkpoint" in failure(
        "export", f"--workdir={tmp_path / 'run-diffusers'}"
    )
    assert (
        "diffusers' layout cannot hold this model: text.encoder is 'learned' and not 'clip'; "
        "denoiser.time is 'sinusoidal'"
        in failure(
            "export", f"--workdir={workdir}", "--format=diffusers", f"--out={tmp_path / 'other'}"
        )
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "run",
        "run-diffusers",
        "run-small",
        "run.safetensors",
    ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    made("export", f"--workdir={make_workdir(folder / 'run', MODELS['class'])}")
    return folder / "run.safetensors"


def changed(file, change, to):
    """A copy of the file after change(arrays, metadata)."""
    arrays = load_file(file)
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    change(arrays, metadata)
    save_file(arrays, to, metadata)
    return to


def without(name):
    return lambda arrays, metadata: (arrays.pop(name, None), metadata.pop(name, None))


@pytest.mark.parametrize(
    "change,sentence",
    [
        (
            lambda arrays, _: arrays.update({"more/x": np.zeros(1)}),
            "has 'more', which vqd export does not write",
        ),
        (without("diffusion.config"), "x.safetensors has no 'diffusion.config' in its metadata"),
        (
            without("diffusion.tokenizer"),
            "x.safetensors has no 'diffusion.tokenizer' in its metadata",
        ),
        (without("vqvae.step"), "x.safetensors has no 'vqvae.step' in its metadata"),
        (lambda _, metadata: metadata.clear(), "x.safetensors has no 'vqvae.step' in its metadata"),
        (
            lambda _, metadata: metadata.update({"vqvae.config": "{"}),
            "'vqvae.config' in its metadata is not JSON",
        ),
        (
            lambda _, metadata: metadata.update({"vqvae.step": "[]"}),
            "'vqvae.step' in its metadata must be of type int, got list",
        ),
    ],
    ids=["more", "config", "tokenizer", "step", "metadata", "json", "kind"],
)
def test_wrong_metadata_are_one_sentence(exported, change, sentence, tmp_path):
    file = changed(exported, change, tmp_path / "x.safetensors")
    assert own.is_exported(file)
    with pytest.raises(UserError, match=re.escape(sentence)):
        own.read(file)


@pytest.mark.parametrize(
    "change,sentence",
    [
        (
            without("vqvae/codes"),
            "the part 'vqvae' of {file} does not fit this model (missing: codes)",
        ),
        (
            without("diffusion/denoiser/head/kernel"),
            "does not fit this model (missing: denoiser/head/kernel)",
        ),
        (lambda arrays, _: arrays.update({"diffusion/more": np.zeros(1)}), "(not expected: more)"),
        (
            lambda arrays, _: arrays.update({"vqvae/codes": np.zeros((20, 5), np.float32)}),
            "codes is float32[20, 5] but float32[20, 6] is expected",
        ),
        (lambda _, metadata: metadata.clear(), "{file} has no 'vqvae.step' in its metadata"),
        (
            lambda _, metadata: metadata.update({"vqvae.config": '{"vqvae": {"newer": 1}}'}),
            "that this version does not know",
        ),
    ],
    ids=["codes", "kernel", "more", "shape", "metadata", "newer"],
)
def test_a_file_that_is_not_whole_makes_no_workdir(exported, change, sentence, tmp_path):
    file = changed(exported, change, tmp_path / "x.safetensors")
    assert sentence.format(file=file) in failure("convert", file, f"--workdir={tmp_path / 'w'}")
    assert not (tmp_path / "w").exists()


def test_a_truncated_file_is_one_sentence(exported, tmp_path):
    file, whole = tmp_path / "x.safetensors", exported.read_bytes()
    for end in (0, 5, 400, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:end])
        with pytest.raises(
            UserError, match="x.safetensors is not a safetensors file, or it is damaged"
        ):
            own.is_exported(file)
    assert "is damaged" in failure("convert", file, f"--workdir={tmp_path / 'w'}")
    assert not (tmp_path / "w").exists()


def test_options_that_it_does_not_need_are_refused(exported, tmp_path):
    assert "holds a complete model: leave out --heads and --image_size" in failure(
        "convert", exported, f"--workdir={tmp_path / 'w'}", "--heads=16", "--image_size=256"
    )
