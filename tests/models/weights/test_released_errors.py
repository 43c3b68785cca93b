"""Weight files that are not what they should be: one sentence that names what is wrong, nothing
run, nothing overwritten.
"""

import os
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers import official  # noqa: E402
from helpers.released import ALL_CODES, CODES, REMAP, SIDE, VARIANTS, E, T, command, write_yaml  # noqa: E402
from vqd_jax.core.errors import UserError
from vqd_jax.models.weights import released, vqgan


def parts(name="none"):
    variant = VARIANTS[name]
    network = official.Transformer(
        codes=CODES, side=SIDE, d=12, heads=3, layers=2, ratio=2, T=T, **variant
    )
    return official.checkpoint(
        network, official.Codec(kind="nearest", codes=ALL_CODES, width=6), T=T, codes=CODES
    )


def write(path, tree):
    torch.save(tree, path)
    return path


def test_the_parts_of_a_checkpoint_are_found_and_the_average_is_taken(tmp_path):
    tree = parts()
    found = released.read(write(tmp_path / "x.pth", tree))
    np.testing.assert_array_equal(
        found.denoiser["to_logits.1.bias"], tree["ema"]["transformer.to_logits.1.bias"]
    )
    assert found.settings["condition"] == {"kind": "none", "classes": 0, "null": "learned"}
    assert found.settings["denoiser"]["mlp"] == "conv" and found.settings["denoiser"]["heads"] == 16


def test_a_codec_alone_in_both_wrappings(tmp_path):
    weights = official.Codec(kind="ema", codes=ALL_CODES, width=6).state_dict()
    for wrapped in (
        {"state_dict": weights | {"loss.discriminator.main.0.weight": torch.zeros(3)}},
        {"model": weights},
        {
            "state_dict": {f"first_stage_model.{k}": v for k, v in weights.items()}
            | {"transformer.head": torch.zeros(2)}
        },
    ):
        found = released.read(write(tmp_path / "codec.pth", wrapped))
        assert found.codec.keys() == weights.keys() and not found.denoiser
    assert vqgan.sizes(found.codec)["vqvae"]["multipliers"] == (1, 2)


def change(key, value=None):
    def apply(tree):
        if value is None:
            del tree["model"][key], tree["ema"][key.removeprefix("transformer.")]
        else:
            tree["model"][key] = tree["ema"][key.removeprefix("transformer.")] = value
        return tree

    return apply


@pytest.mark.parametrize(
    "damage,sentence",
    [
        (
            change("transformer.surprise", torch.zeros(2)),
            "'transformer.surprise', which no released model has",
        ),
        (
            change("transformer.transformer.content_emb.emb.weight"),
            "not the weights of a VQ-Diffusion transformer",
        ),
        (
            change("transformer.log_surprise", torch.zeros(2)),
            "'transformer.log_surprise', which no released model has",
        ),
        (
            change("transformer.condition_emb.surprise", torch.zeros(2)),
            "\"condition_emb\" has 'surprise', which no CLIP text tower has",
        ),
        (change("transformer.log_cumprod_at"), "the schedule table 'log_cumprod_at' is missing"),
        (
            lambda tree: {"weights": tree["model"]},
            "is not recognised, its first keys are 'weights.",
        ),
        (lambda tree: [1, 2], "holds a list, not a dictionary of tensors"),
    ],
    ids=["unknown", "missing", "table", "condition", "schedule", "wrapped", "list"],
)
def test_a_strange_checkpoint_is_one_sentence(damage, sentence, tmp_path):
    file = write(tmp_path / "x.pth", damage(parts()))
    with pytest.raises(UserError, match=sentence):
        released.read(file)


@pytest.mark.parametrize(
    "damage,sentence",
    [
        (
            change("transformer.transformer.blocks.1.surprise", torch.zeros(2)),
            "'blocks.1.surprise', unknown in this format",
        ),
        (change("transformer.transformer.blocks.1.attn.key.bias"), "has only the parts [0, 2]"),
        (
            change("transformer.transformer.to_logits.1.bias", torch.zeros(3)),
            "'head/bias' has shape (3,) in the file and (20,) in the model",
        ),
    ],
    ids=["unknown", "missing", "shape"],
)
def test_weights_that_do_not_fit_are_one_sentence(damage, sentence, tmp_path):
    file, remap = (
        write(tmp_path / "x.pth", damage(parts())),
        write(tmp_path / "remap.pt", torch.from_numpy(REMAP)),
    )
    done = command(
        file, f"--workdir={tmp_path / 'run'}", f"--remap={remap}", "--image_size=16", "--heads=3"
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and sentence in done.stderr, (
        done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_what_the_command_needs_is_said(tmp_path):
    file, remap = (
        write(tmp_path / "x.pth", parts("class")),
        write(tmp_path / "remap.pt", torch.from_numpy(REMAP)),
    )
    yaml = write_yaml(tmp_path / "config.yaml", VARIANTS["class"])
    where = f"--workdir={tmp_path / 'run'}"
    assert "give the weights and the workdir to make" in command(where).stderr
    assert "there is no weight file" in command(tmp_path / "none.pth", where).stderr
    assert (
        "knows 20 tokens and the codec 24: give the remap file with --remap"
        in command(file, where, f"--yaml={yaml}").stderr
    )
    assert "has no model_index.json" in command(tmp_path, where).stderr
    first = command(file, where, f"--yaml={yaml}", f"--remap={remap}")
    assert first.returncode == 0 and "class" in first.stdout, first.stderr
    assert (
        "already holds a model" in command(file, where, f"--yaml={yaml}", f"--remap={remap}").stderr
    )


def test_a_text_tower_that_a_class_model_does_not_read_is_said_to_be_left_out(tmp_path):
    tree, tower = parts("class"), official.clip(E, 2)
    for key, value in tower.items():
        change(f"transformer.condition_emb.{key}", value)(tree)
    file, remap = (
        write(tmp_path / "x.pth", tree),
        write(tmp_path / "remap.pt", torch.from_numpy(REMAP)),
    )
    yaml = write_yaml(tmp_path / "config.yaml", VARIANTS["class"])
    done = command(file, f"--workdir={tmp_path / 'run'}", f"--yaml={yaml}", f"--remap={remap}")
    assert done.returncode == 0, done.stderr
    assert (
        f"left out: {len(tower)} arrays of a text encoder (condition_emb), which this model does "
        "not read" in done.stdout
    )


def test_a_yaml_of_another_model_is_refused(tmp_path):
    file, yaml = (
        write(tmp_path / "x.pth", parts()),
        write_yaml(tmp_path / "config.yaml", VARIANTS["none"]),
    )
    yaml.write_text(yaml.read_text().replace("n_layer: 2", "n_layer: 19"))
    with pytest.raises(
        UserError, match="is not the config of these weights: its n_layer is 19, theirs 2"
    ):
        released.read(file, yaml)
    yaml.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="is not YAML"):
        released.read(file, yaml)


class Malicious:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "save",
    [
        lambda tree, path: torch.save(tree, path),
        lambda tree, path: path.write_bytes(pickle.dumps(tree)),
        lambda tree, path: torch.save(tree, path, _use_new_zipfile_serialization=False),
    ],
)
def test_a_malicious_pickle_is_refused_and_nothing_runs(save, tmp_path):
    file, trace = tmp_path / "x.pth", tmp_path / "trace"
    save(parts() | {"extra": Malicious(trace)}, file)
    with pytest.raises(UserError, match="is not a torch checkpoint of tensors"):
        released.read(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    "remap,sentence",
    [
        (REMAP[:5], "a token for each of the 24 codes"),
        (REMAP * 2, "must be 0 to"),
        (REMAP.astype(float), "a token for each of the 24 codes"),
    ],
)
def test_a_wrong_remap_file_is_one_sentence(remap, sentence):
    weights = {
        k: v.numpy()
        for k, v in official.Codec(kind="nearest", codes=ALL_CODES, width=6).state_dict().items()
    }
    with pytest.raises(UserError, match=sentence):
        vqgan.with_remap(weights, remap)
