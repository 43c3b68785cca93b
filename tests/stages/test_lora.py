"""Low-rank adapters: the algebra, what training may change, the file, and a run on real emoji from
the shipped model.
"""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from helpers.commands import folder_of_emoji, run, run_in_process
from helpers.diffusion_stage import K, T, batch, make
from helpers.shipped import SHIPPED
from vqd_jax.config import build, paper
from vqd_jax.config.defaults import defaults
from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.data import batches
from vqd_jax.data.text.load import load_tokenizer
from vqd_jax.inference import pipeline
from vqd_jax.models.conditioning import ClassConditioner, Conditioner, NoConditioner
from vqd_jax.models.denoiser import Denoiser
from vqd_jax.models.text_clip import ClipText
from vqd_jax.runtime.checkpoint import Checkpoints, widen
from vqd_jax.runtime.rows import Rows
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.stages import jitted, lora
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


def stage_of(kind, **fields):
    """A small stage of each kind of model with an adapter in all its kernels; class and
    unconditional ones have convolutions.
    """
    one = make(drop_caption=0.3)
    text = kind in ("text", "clip")
    denoiser = Denoiser(
        codes=K,
        grid=(2, 2),
        T=T,
        layers=2,
        width=8,
        heads=2,
        mlp_ratio=2,
        condition="text" if text else kind,
        mlp="fc" if text else "conv",
        classes=6,
    )
    clip = Conditioner(
        encoder=ClipText(vocabulary=6, length=3, width=8, layers=1, heads=1), frozen=True
    )
    conditioner = {
        "text": one.conditioner,
        "clip": clip,
        "class": ClassConditioner(classes=5),
        "none": NoConditioner(),
    }[kind]
    return dataclasses.replace(
        one,
        denoiser=denoiser,
        conditioner=conditioner,
        adapter=Adapter(**dict(rank=2, alpha=6.0, kernels="all") | fields),
    )


@functools.cache
def drawn(stage):
    """Parameters large enough that everything depends on all of them; `up` is 0 all the same."""
    shapes, _ = jax.eval_shape(stage.init, jax.random.key(0), batch(4))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), jnp.float32), shapes
    )
    return params | {"adapter": stage.adapter.init(jax.random.key(1), params["denoiser"])}


def moved(params):
    """With an `up` that is not 0."""
    rng = np.random.default_rng(1)
    shift = lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)
    return params | {"adapter": jax.tree.map(shift, params["adapter"])}


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
def test_the_adapter_of_the_published_base_model_is_a_few_megabytes():
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
        sizes[kernels] = 4 * count(jax.eval_shape(adapter.init, jax.random.key(0), denoiser)) / 1e6
    assert sizes == {
        "attention": pytest.approx(7.78, abs=0.01),
        "all": pytest.approx(14.01, abs=0.01),
    }


# ---- the file


@pytest.fixture
def written(tmp_path):
    stage = stage_of("text", kernels="attention")
    params = jax.tree.map(np.asarray, moved(drawn(stage)))
    lora.write(tmp_path / "a.safetensors", stage.adapter, params)
    return stage, params, tmp_path / "a.safetensors"


def test_a_file_holds_the_adapter_alone_and_gives_the_same_kernels(written):
    stage, params, path = written
    stored = load_file(path)
    assert stored.keys() == flatten_dict(params["adapter"], sep="/").keys() and [
        *path.parent.iterdir()
    ] == [path]
    for scale in (1.0, -0.5):
        want = stage.adapter.merged(params["denoiser"], params["adapter"], scale)
        jax.tree.map(
            np.testing.assert_array_equal,
            lora.apply_file(path, params["denoiser"], scale=scale),
            want,
        )
    jax.tree.map(
        np.testing.assert_array_equal,
        lora.apply_file(path, params["denoiser"], scale=0.0),
        params["denoiser"],
    )


def test_a_base_in_half_precision_or_with_a_negative_zero_is_the_same_base(written):
    _, params, _ = written
    mark = lora.fingerprint(params["denoiser"])
    half = jax.tree.map(lambda x: x.astype(np.float16), params["denoiser"])
    assert lora.fingerprint(half) == lora.fingerprint(widen(half)) == mark
    zeros = [
        jax.tree.map(lambda x, zero=zero: np.full_like(x, zero), params["denoiser"])
        for zero in (0.0, -0.0)
    ]
    assert lora.fingerprint(zeros[0]) == lora.fingerprint(zeros[1]) != mark


def test_what_is_no_adapter_of_this_model_is_one_sentence(written):
    stage, params, path = written
    denoiser, parent = params["denoiser"], path.parent
    other = jax.tree.map(np.copy, denoiser)
    other["block1"]["mlp_out"]["bias"][3] += 0.01
    with pytest.raises(UserError, match="was trained on another model than this one"):
        lora.apply_file(path, other)
    with pytest.raises(UserError, match="there is no adapter file gone.safetensors"):
        lora.apply_file("gone.safetensors", denoiser)
    for cut in (0, 5, 100, path.stat().st_size - 1):
        (parent / "cut.safetensors").write_bytes(path.read_bytes()[:cut])
        with pytest.raises(UserError, match="is not a safetensors file, or it is damaged"):
            lora.apply_file(parent / "cut.safetensors", denoiser)
    arrays, about = (
        load_file(path),
        {"rank": 2, "alpha": 6.0, "kernels": "attention", "base": lora.fingerprint(denoiser)},
    )

    def refused(arrays, about, sentence):
        save_file(
            arrays,
            parent / "x.safetensors",
            about if about is None else {"vqd_jax.adapter": json.dumps(about)},
        )
        with pytest.raises(UserError, match=sentence):
            lora.apply_file(parent / "x.safetensors", denoiser)

    for wrong in (None, [], 3, {"rank": 2}, about | {"rank": "2"}):
        refused(arrays, wrong, "holds no adapter that vqd_jax.main wrote")
    name = next(iter(arrays))
    refused(
        arrays | {"block7/mlp_in/kernel/up": np.zeros((2, 8), np.float32)},
        about,
        "not expected: block7/mlp_in/kernel/up",
    )
    refused({n: x for n, x in arrays.items() if n != name}, about, f"missing: {name}")
    refused(arrays | {name: arrays[name][:1]}, about, f"different: {name} is float32")
    refused(
        arrays | {name: arrays[name].astype(np.float16)}, about, f"different: {name} is float16"
    )
    refused(arrays, about | {"rank": 3}, "different: ")


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


# ---- files for the shipped model, which is stored in half precision


@pytest.fixture(scope="module")
def for_shipped(shipped, tmp_path_factory):
    """(adapter, its matrices, file) with random numbers, for the shipped model."""
    adapter, denoiser = Adapter(rank=2), jax.device_get(shipped.weights["denoiser"])
    rng = np.random.default_rng(0)
    matrices = jax.tree.map(
        lambda s: np.asarray(0.1 * rng.normal(size=s.shape), np.float32),
        jax.eval_shape(adapter.init, jax.random.key(0), denoiser),
    )
    path = tmp_path_factory.mktemp("lora") / "adapter.safetensors"
    lora.write(path, adapter, {"denoiser": denoiser, "adapter": matrices})
    return adapter, matrices, path


def test_a_model_loaded_with_a_file_is_the_merged_model(shipped, for_shipped):
    adapter, matrices, path = for_shipped
    base = jax.device_get(shipped.weights)
    merged = pipeline.load(SHIPPED, adapter=path)
    want = base | {"denoiser": adapter.merged(base["denoiser"], matrices)}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(merged.weights), want)
    assert (merged.tokens(PROMPTS, calls=2) != shipped.tokens(PROMPTS, calls=2)).any()
    zero = pipeline.load(SHIPPED, adapter=path, adapter_scale=0.0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(zero.weights), base)


def test_a_file_has_the_header_of_earlier_versions(for_shipped):
    """Files that were written before the package was reorganised are still read."""
    with safe_open(for_shipped[2], framework="numpy") as file:
        assert file.metadata().keys() == {"vqd_jax.adapter"}


@pytest.mark.parametrize(
    "command,sentence",
    [
        (
            ["sample", "--workdir={base}", "--adapter={other}", "--prompt=x"],
            "was trained on another model than this one",
        ),
        (
            ["sample", "--workdir={base}", "--adapter={base}", "--prompt=x"],
            "there is no adapter file {base}",
        ),
        (
            ["sample", "--workdir={base}", "--adapter_scale=0.5", "--prompt=x"],
            "--adapter_scale needs an adapter",
        ),
        (
            ["evaluate", "--workdir={base}", "--adapter={base}/README.md"],
            "is not a safetensors file",
        ),
        (
            [
                "train",
                "--config=configs/folder.py",
                "--config.adapter.rank=8",
                "--workdir={new}",
            ],
            "say which with --config.init_from=DIR",
        ),
    ],
)
def test_bad_input_on_the_command_line_is_one_sentence(written, tmp_path, command, sentence):
    names = {"base": SHIPPED, "other": written[2], "new": tmp_path / "new"}
    name, *arguments = (text.format(**names) for text in command)
    done = run_in_process(name, *arguments, ok=False)
    assert done.returncode == 2 and sentence.format(**names) in done.stderr, done.stderr


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
    assert f"the adapter, for --workdir={base}: {path}, 0.1 MB" in done.stdout
    assert load_file(path).keys() == flatten_dict(stored(workdir)["adapter"], sep="/").keys()


@pytest.mark.slow
def test_the_bound_on_the_training_pictures_fell(tuned):
    folder, base, workdir, _ = tuned
    tokens = np.load(next((folder / "cache").glob("tokens-*.npy")))
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
    assert json.loads(pictures[1].text["vqd_jax"])["adapter"] == strWorkdir(workdir).adapter


@pytest.mark.slow
def test_three_steps_and_a_resume_without_the_base_are_six(tuned, tmp_path):
    folder, _, workdir, _ = tuned
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "diffusion" / "checkpoints" / "6")
    Workdir(again).adapter.unlink()
    keys = "adapter.rank=4", f"init_from={folder / 'gone'}"
    assert "diffusion: 3 of 6 steps" in train(folder, again, *keys).stdout
    for item in ("state", "weights"):
        same(stored(workdir, item), stored(again, item))
    assert Workdir(again).adapter.read_bytes() == Workdir(workdir).adapter.read_bytes()
    Workdir(again).adapter.unlink()
    assert "all 6 steps are done" in train(folder, again, *keys).stdout
    assert Workdir(again).adapter.read_bytes() == Workdir(workdir).adapter.read_bytes()


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
