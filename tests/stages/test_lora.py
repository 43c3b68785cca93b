"""Low-rank adapters: the algebra, what training may change, and a run on real emoji from the shipped
model.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import load_file

from helpers.adapted_stage import drawn, moved, stage_of
from helpers.commands import folder_of_emoji, run
from helpers.diffusion_stage import T, batch
from helpers.shipped import SHIPPED
from vqd_jax.config import build, paper
from vqd_jax.config.defaults import defaults
from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.data import batches
from vqd_jax.data.text.load import load_tokenizer
from vqd_jax.inference import pipeline
from vqd_jax.runtime.checkpoint import Checkpoints, widen
from vqd_jax.runtime.rows import Rows
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.stages import jitted, lora, lora_files
from vqd_jax.stages.importance import LossAwareTimes
from vqd_jax.stages.lora import Adapter
from vqd_jax.train.dry_run import StubTokenizer
from vqd_jax.train.optim import Optim
from vqd_jax.train.state import State
from vqd_jax.train.step import make_step

PROMPTS = ["picture number 3", "no. 7", "a google style emoji of a crab"]
KINDS = ["text", "clip", "class", "none"]
OPTIM = dict(
    learning_rate=0.1,
    warmup=1,
    decay="constant",
    final=1.0,
    betas=(0.9, 0.96),
    weight_decay=0.1,
    clip=1.0,
)


def logits(stage, params):
    data = batch(4)
    return jax.jit(stage.predict)(
        params, data["tokens"], jnp.array([1, 2, 3, 4]), data["text"], jnp.arange(4) == 0
    )


# ---- the algebra


@pytest.mark.parametrize("alpha,scale", [(16.0, 1.0), (3.0, 0.5)])
def test_a_merged_kernel_is_the_base_and_a_scaled_product(alpha, scale):
    rng = np.random.default_rng(0)
    W, V = rng.normal(size=(12, 7)), rng.normal(size=(3, 3, 5, 4))
    denoiser = {
        "block0": {
            "self_attention": {"out": {"kernel": W}},
            "mlp_in": {"kernel": V, "bias": np.ones(4)},
        }
    }
    made = Adapter(rank=3, alpha=alpha, kernels="all")
    with jax.enable_x64(True):
        parts = jax.tree.map(
            lambda s: rng.normal(size=s.shape),
            jax.eval_shape(made.init, jax.random.key(0), denoiser),
        )
        merged = jax.tree.map(np.asarray, made.merged(denoiser, parts, scale))["block0"]
    linear, conv = (parts["block0"][name] for name in ("self_attention", "mlp_in"))
    x = rng.normal(size=(20, 12))
    low = x @ linear["out"]["kernel"]["down"] @ linear["out"]["kernel"]["up"]
    np.testing.assert_allclose(
        x @ merged["self_attention"]["out"]["kernel"],
        x @ W + scale * alpha / 3 * low,
        rtol=0,
        atol=1e-12,
    )
    patch = rng.normal(size=(6, 3, 3, 5))  # what a 3x3 convolution sees at six places
    convolve = lambda kernel: np.einsum("phwc,hwcd->pd", patch, kernel)
    low = convolve(conv["kernel"]["down"].reshape(3, 3, 5, 3)) @ conv["kernel"]["up"]
    np.testing.assert_allclose(
        convolve(merged["mlp_in"]["kernel"]),
        convolve(V) + scale * alpha / 3 * low,
        rtol=0,
        atol=1e-12,
    )
    assert merged["mlp_in"]["bias"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "kind",
    ["text", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("none", "clip", "class"))],
)
def test_a_fresh_adapter_changes_nothing_and_one_with_an_up_does(kind):
    stage = stage_of(kind)
    params = drawn(stage)
    base = {name: part for name, part in params.items() if name != "adapter"}
    np.testing.assert_array_equal(logits(stage, params), logits(stage, base))
    assert np.abs(logits(stage, moved(params)) - logits(stage, base)).max() > 0.1


def test_a_merged_model_has_the_logits_of_model_and_adapter():
    stage = stage_of("text")
    params = moved(drawn(stage))
    merged = {
        "conditioner": params["conditioner"],
        "denoiser": stage.adapter.merged(params["denoiser"], params["adapter"]),
    }
    np.testing.assert_allclose(logits(stage, merged), logits(stage, params), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kernels,names",
    [
        ("attention", {"qkv", "out", "q", "kv"}),
        ("all", {"qkv", "out", "q", "kv", "mlp_in", "mlp_out"}),
    ],
)
def test_which_kernels(kernels, names):
    init = stage_of("text", kernels=kernels).init
    places = flatten_dict(jax.eval_shape(init, jax.random.key(0), batch(4))[0]["adapter"])
    assert {place[-3] for place in places} == names and {place[0] for place in places} == {
        "block0",
        "block1",
    }


# ---- training


@pytest.mark.parametrize(
    "kind", ["text", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_the_gradient_reaches_the_adapter_alone(kind):
    stage = stage_of(kind)
    params = moved(drawn(stage))
    loss = lambda p: stage.loss(
        p, LossAwareTimes.empty(T), {}, batch(8), jax.random.key(2), jnp.int32(0), Rows.of_device(8)
    )[0]
    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["adapter"]))
    for name in params.keys() - {"adapter"}:
        assert all(not np.any(g) for g in jax.tree.leaves(grads[name]))


@pytest.mark.slow  # ten seconds each; models/test_denoiser.py compares them without an adapter
@pytest.mark.parametrize(
    "options",
    [
        {"scan": True, "remat": "full"},
        {"scan": True},
        {"remat": "full"},
    ],
    ids=str,
)
def test_scan_and_remat_change_no_number_beyond_rounding(options):
    plain = stage_of("text")
    changed = dataclasses.replace(plain, denoiser=plain.denoiser.clone(**options))
    params = moved(drawn(plain))
    loss = lambda stage: (
        lambda p: stage.loss(
            p,
            LossAwareTimes.empty(T),
            {},
            batch(8),
            jax.random.key(2),
            jnp.int32(0),
            Rows.of_device(8),
        )[0]
    )
    (value, got), (wanted, want) = (
        jax.jit(jax.value_and_grad(loss(stage)))(params) for stage in (changed, plain)
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(got["adapter"]), jax.tree.leaves(want["adapter"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize(
    "kind,muon",
    [
        ("text", 0.0),
        *(
            pytest.param(kind, muon, marks=pytest.mark.slow)
            for kind in KINDS
            for muon in (0.0, 0.1)
            if (kind, muon) != ("text", 0.0)
        ),
    ],
)
@pytest.mark.slow  # 11 s
def test_steps_change_the_adapter_alone_and_the_optimizer_keeps_nothing_else(kind, muon):
    stage = stage_of(kind)
    params = drawn(stage)
    optimizer = Optim(**OPTIM, muon=muon).build(80, Pace(8), stage.unchanged)
    state = State(
        step=jnp.int32(0),
        params=params,
        ema=jax.tree.map(jnp.array, params),
        opt_state=optimizer.init(params),
        extra=LossAwareTimes.empty(T),
    )
    size = lambda tree: sum(np.size(x) for x in jax.tree.leaves(tree))
    assert (
        size(state.opt_state) <= 2 * size(params["adapter"]) + 8
    )  # two moments, and some counters
    step = jax.jit(make_step(stage, optimizer, 0.5), static_argnums=4)
    for _ in range(3):
        state, _ = step(state, {}, batch(8), jax.random.key(3), None)
    for after in (state.params, state.ema):
        for name in params:
            equal = jax.tree.leaves(
                jax.tree.map(lambda a, b: bool((a == b).all()), params[name], after[name])
            )
            assert not any(equal) if name == "adapter" else all(equal), name


@pytest.mark.slow  # 4 s
def test_the_files_for_the_published_base_model_have_a_few_megabytes():
    c = defaults()
    paper.codec(c, 8, 2887)
    paper.text(c)
    paper.base(c)
    ids = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    stage = build.diffusion_stage(c, StubTokenizer(49408, 77))
    denoiser = jax.eval_shape(stage.init, jax.random.key(0), {"text": ids})[0]["denoiser"]
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert round(count(denoiser) / 1e6) == 389
    sizes = {}
    for kernels in lora.KERNELS:
        adapter = Adapter(rank=8, kernels=kernels)
        shapes = flatten_dict(jax.eval_shape(adapter.init, jax.random.key(0), denoiser))
        copies = lambda path: len(lora_files.LAYERS["/".join(path[1:-2])])
        sizes[kernels] = sum(
            4e-6 * x.size * (copies(path) if path[-1] == "down" else 1)
            for path, x in shapes.items()
        )
    assert sizes == {
        "attention": pytest.approx(9.34, abs=0.01),
        "all": pytest.approx(15.57, abs=0.01),
    }


@pytest.mark.parametrize(
    "fields,sentence",
    [
        (dict(kernels="mlp"), "must be attention or all, got 'mlp'"),
        (dict(rank=-1), "got -1 and 16"),
        (dict(alpha=0.0), "alpha positive, got 0 and 0"),
    ],
)
def test_a_wrong_key_is_one_sentence(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        Adapter(**fields)


# ---- a run on real emoji, from the shipped model: a training of half a minute for all tests below


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(folder, base, workdir, what the run printed): six steps on twenty emoji."""
    folder = tmp_path_factory.mktemp("adapter")
    shutil.copytree(SHIPPED, folder / "base")
    folder_of_emoji(folder / "pictures", broken=0)
    return (
        folder,
        folder / "base",
        folder / "run",
        train(folder, folder / "run", "adapter.rank=4", f"init_from={folder / 'base'}"),
    )


def train(folder, workdir, *keys, ok=True):
    settings = f"""folder.path={folder / "pictures"} folder.held_out_items=0.0 data.cache={folder / "cache"}
        diffusion_train.batch_size=8 diffusion_train.examples=48 diffusion_train.log_every=8 diffusion_train.evaluate_every=24
        diffusion_train.save_every=24 diffusion_optim.learning_rate=1e-2 diffusion_optim.warmup=8 diffusion_optim.decay=constant
        held_out.examples=8 held_out.draws=1 preview.pictures=2 sampling.calls=3 sampling.guidance=1.5""".split()
    return run(
        "vqd_jax.main",
        "--config=configs/folder.py",
        f"--workdir={workdir}",
        *(f"--config.{key}" for key in [*settings, *keys]),
        ok=ok,
    )


def stored(workdir, item="weights", step=None):
    return Checkpoints(workdir / "diffusion" / "checkpoints", read_only=True).restore(
        item, step=step
    )


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.slow
def test_the_base_is_untouched_and_the_adapter_is_not(tuned):
    _, base, workdir, done = tuned
    before = widen(stored(base))
    for after in (stored(workdir), stored(workdir, "state")["params"]):
        same(before, {name: after[name] for name in before})
        assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(after["adapter"]))
    path = Workdir(workdir).adapter
    assert f"the adapter, for --workdir={base}: {path}, 0.2 MB" in done.stdout
    assert {file.name for file in path.iterdir()} == {lora_files.CONFIG, lora_files.WEIGHTS}


@pytest.mark.slow
def test_the_bound_on_the_training_pictures_fell(tuned):
    folder, base, workdir, _ = tuned
    tokens = np.load(next((folder / "cache").glob("tokens-*.npy"))).astype(np.int32)
    model = pipeline.load(base)
    chosen = range(len(tokens))
    ids = load_tokenizer(stored(base, "tokenizer"))(
        [(folder / "pictures" / f"{i}.txt").read_text().splitlines()[0] for i in chosen]
    )
    assert len(tokens) == 20 and batches.ROWS >= 20
    order = [int(path.stem) for path in sorted((folder / "pictures").glob("*.png"))]
    bound = lambda weights: float(
        jitted.bound(model.stage, weights, jax.random.key(0), tokens, ids[order], 2).mean()
    )
    merged = pipeline.load(base, adapter=Workdir(workdir).adapter)
    assert bound(merged.weights) < 0.9 * bound(model.weights)


@pytest.mark.slow
def test_the_file_on_the_base_draws_what_the_run_draws(tuned, tmp_path):
    _, base, workdir, _ = tuned
    own, with_file, plain = (
        pipeline.load(workdir),
        pipeline.load(base, adapter=Workdir(workdir).adapter),
        pipeline.load(base),
    )
    same(jax.device_get(own.weights), jax.device_get(with_file.weights))
    draw = lambda model: model.tokens(
        PROMPTS, calls=4, guidance=1.5, temperature=0.9, seed=2
    )  # the rest of both configs is equal
    np.testing.assert_array_equal(draw(own), draw(with_file))
    assert (draw(plain) != draw(with_file)).any()
    none = pipeline.load(base, adapter=Workdir(workdir).adapter, adapter_scale=0.0)
    np.testing.assert_array_equal(draw(plain), draw(none))
    pictures = []
    for name, arguments in (
        ("own", [f"--workdir={workdir}"]),
        ("file", [f"--workdir={base}", f"--adapter={Workdir(workdir).adapter}"]),
    ):
        run(
            "vqd_jax",
            "sample",
            *arguments,
            f"--prompt={PROMPTS[0]}",
            "--num=2",
            "--calls=3",
            "--guidance=1.5",
            "--temperature=1",
            f"--out={tmp_path / name}.png",
        )
        pictures.append(Image.open(tmp_path / f"{name}.png"))
    np.testing.assert_array_equal(*map(np.asarray, pictures))
    assert json.loads(pictures[1].text["vqd_jax"])["adapter"] == str(Workdir(workdir).adapter)


@pytest.mark.slow
def test_three_steps_and_a_resume_without_the_base_are_six(tuned, tmp_path):
    folder, _, workdir, _ = tuned
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "diffusion" / "checkpoints" / "6")
    shutil.rmtree(Workdir(again).adapter)
    keys = "adapter.rank=4", f"init_from={folder / 'gone'}"
    assert "diffusion: 3 of 6 steps" in train(folder, again, *keys).stdout
    for item in ("state", "weights"):
        same(stored(workdir, item), stored(again, item))
    arrays = lambda folder: load_file(Workdir(folder).adapter / lora_files.WEIGHTS)
    same(arrays(workdir), arrays(again))
    shutil.rmtree(Workdir(again).adapter)
    assert "all 6 steps are done" in train(folder, again, *keys).stdout
    same(arrays(workdir), arrays(again))


@pytest.mark.slow
def test_what_is_exported_is_a_plain_model(tuned, tmp_path):
    _, base, workdir, _ = tuned
    run(
        "vqd_jax",
        "export",
        f"--workdir={workdir}",
        "--format=workdir",
        f"--out={tmp_path / 'small'}",
    )
    half = lambda x: x.astype(np.float16).astype(np.float32)
    same(
        pipeline.load(tmp_path / "small").weights,
        jax.tree.map(half, jax.device_get(pipeline.load(workdir).weights)),
    )
    assert stored(tmp_path / "small").keys() == {"denoiser", "conditioner"}
    assert stored(tmp_path / "small", "config")["adapter"]["rank"] == 0


@pytest.mark.slow
def test_another_run_begins_with_the_merged_model(tuned, tmp_path):
    folder, _, workdir, _ = tuned
    train(
        folder, tmp_path / "next", f"init_from={workdir}", "diffusion_train.examples=8"
    )  # one step; the rate begins at 0
    same(jax.device_get(pipeline.load(workdir).weights), stored(tmp_path / "next"))
    done = train(
        folder,
        tmp_path / "next",
        f"init_from={workdir}",
        "diffusion_train.examples=8",
        "adapter.rank=4",
        ok=False,
    )
    assert (
        done.returncode == 2 and "holds a model that was trained without an adapter" in done.stderr
    )
