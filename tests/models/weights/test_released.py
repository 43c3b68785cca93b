"""Small checkpoints with random weights in the layouts of the released models, written by PyTorch,
are converted and compared with PyTorch on the code path of `vqd sample`.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image  # noqa: E402

from helpers import official  # noqa: E402
from helpers.clip_files import MERGES, VOCABULARY, write_folder  # noqa: E402
from helpers.released import (
    ALL_CODES,
    CODES,
    REMAP,
    SIDE,
    SIZE,
    VARIANTS,
    E,
    Gumbel,
    T,
    command,
    write_yaml,
)  # noqa: E402
from vqd_jax.inference import pipeline
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages import sampling


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("vocabulary"), VOCABULARY, MERGES)


# Commands that take 10 s and more for each model; docs/published.md has another text model.
ONE = pytest.mark.parametrize(
    "converted",
    ["text", *(pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS if n != "text")],
    indirect=True,
)


@pytest.fixture(scope="module", params=VARIANTS)
def converted(request, tmp_path_factory, vocabulary):
    """Converts a checkpoint of each variant: (model, PyTorch network, PyTorch codec, null, folder)."""
    variant, folder = VARIANTS[request.param], tmp_path_factory.mktemp("official")
    sizes = dict(codes=CODES, side=SIDE, d=12, heads=3, layers=2, ratio=2, T=T, text_width=E)
    network = official.randomise(official.Transformer(**sizes, **variant))
    text = variant["condition"] == "text"
    codec = official.randomise(
        official.Codec(kind="gumbel" if text else "nearest", codes=ALL_CODES, width=6), seed=1
    )
    null = torch.randn(77, E, dtype=torch.float64) if request.param == "text" else None
    file = folder / "model.pth"
    torch.save(
        official.checkpoint(
            network, codec, T=T, codes=CODES, clip=official.clip(E, 2) if text else None, null=null
        ),
        file,
    )
    torch.save(torch.from_numpy(REMAP), folder / "remap.pt")
    write_yaml(folder / "config.yaml", variant)
    extra = [f"--tokenizer={vocabulary}"] if text else []
    done = command(
        file,
        f"--workdir={folder / 'run'}",
        f"--yaml={folder / 'config.yaml'}",
        f"--remap={folder / 'remap.pt'}",
        *extra,
    )
    assert done.returncode == 0, done.stderr
    return pipeline.load(folder / "run"), network, codec, null, folder


def conditions_of(model, null):
    """Conditions of two images and of their null for our sampler, and for PyTorch."""
    kind = model.config.condition.kind
    prompts = {"text": ["ab cd", "xyz"], "class": ["1", "3"], "none": ["", ""]}[kind]
    guidance = 1.0 if kind == "none" else 2.5
    conditions, scales = model.conditions(prompts, "", GuidanceConfig(guidance=guidance))
    if kind == "class":
        torch_side = [[1, 3], [4, 4]]  # the row after the last: learned, or the mean
    elif kind == "text":
        states = torch.stack(
            [tower(torch.from_numpy(model.tokenizer([p])[0]).long()) for p in prompts]
        )
        away = (
            tower(torch.from_numpy(model.tokenizer([""])[0]).long())
            if null is None
            else null.float()
        )
        torch_side = [[s[None] for s in states], [away[None], away[None]]]
    else:
        torch_side = [[None, None], [None, None]]
    return conditions, scales, torch_side, guidance


def tower(ids):
    """OpenAI's text tower by its definition, up to ln_final, each position scaled to length 1."""
    w, e = official.clip(E, 2), E
    norm = lambda x, name: torch.nn.functional.layer_norm(
        x, (e,), w[name + ".weight"], w[name + ".bias"], 1e-5
    )
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    causal = torch.full((77, 77), -torch.inf).triu(1)
    for i in range(2):
        b = f"transformer.resblocks.{i}."
        q, k, v = (
            norm(x, b + "ln_1") @ w[b + "attn.in_proj_weight"].T + w[b + "attn.in_proj_bias"]
        ).chunk(3, -1)
        attention = (q @ k.T * e**-0.5 + causal).softmax(-1) @ v
        x = x + attention @ w[b + "attn.out_proj.weight"].T + w[b + "attn.out_proj.bias"]
        h = norm(x, b + "ln_2") @ w[b + "mlp.c_fc.weight"].T + w[b + "mlp.c_fc.bias"]
        x = (
            x
            + (h * torch.sigmoid(1.702 * h)) @ w[b + "mlp.c_proj.weight"].T
            + w[b + "mlp.c_proj.bias"]
        )
    x = norm(x, "ln_final")
    return x / x.norm(dim=-1, keepdim=True)


def test_the_network_agrees(converted):
    model, network, _, null, _ = converted
    conditions, _, torch_side, _ = conditions_of(model, null)
    rng = np.random.default_rng(0)
    z, worst = rng.integers(0, CODES + 1, (2, SIDE * SIDE)), 0.0
    for side in range(2):
        for t in (1, 4, T):
            ours = model.stage.predict(
                model.weights,
                jnp.asarray(z),
                jnp.full(2, t),
                *map(jnp.asarray, (conditions.ids[side], conditions.drop[side])),
            )
            with torch.no_grad():
                theirs = torch.stack(
                    [network(torch.from_numpy(z[i]), t - 1, torch_side[side][i]) for i in range(2)]
                )
            worst = max(worst, np.abs(np.asarray(ours) - theirs.numpy()).max())
    assert worst < 1e-4, worst


def test_the_codec_agrees(converted):
    model, _, codec, _, _ = converted
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    with torch.no_grad():
        index = (
            codec.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
            .flatten(1)
            .numpy()
        )
    np.testing.assert_array_equal(model.encode(images), REMAP[index])
    tokens = rng.integers(0, CODES, (2, SIDE * SIDE))
    first = np.array([list(REMAP).index(token) for token in range(CODES)])
    with torch.no_grad():
        theirs = (
            codec.decode(torch.from_numpy(first[tokens]).reshape(2, SIDE, SIDE))
            .permute(0, 2, 3, 1)
            .numpy()
        )
    ours = np.asarray(model.codec.paint(model.codec_weights, jnp.asarray(tokens)))
    np.testing.assert_allclose(
        ours / 2, theirs / 2, atol=1e-5
    )  # of a range of 1, as pixels are given


def test_a_generation_with_the_same_noise_has_the_same_tokens(converted):
    model, network, _, null, _ = converted
    conditions, scales, torch_side, guidance = conditions_of(model, null)
    noise = np.random.default_rng(2).gumbel(size=(T, 2, SIDE * SIDE, CODES + 1)).astype(np.float32)
    ours = sampling.sample(
        model.stage,
        model.weights,
        conditions,
        scales,
        seed=0,
        sampler=Gumbel(noise),
        guidance_config=GuidanceConfig(guidance=guidance, top_p=0.86),
    )
    theirs = [
        released_sampling(network, *sides, guidance, torch.from_numpy(noise[:, i]), 0.86)
        for i, sides in enumerate(zip(*torch_side))
    ]
    np.testing.assert_array_equal(ours, torch.stack(theirs).numpy())
    assert len(np.unique(ours)) > 5


@torch.no_grad()
def released_sampling(network, condition, null, guidance, noise, top_p):
    """Ancestral sampling of one image by the formulas of the released code, with codes last."""
    b = official.tables(T, CODES)
    z = torch.full((SIDE * SIDE,), CODES)
    lae = torch.logaddexp
    for i, t in enumerate(range(T - 1, -1, -1)):
        log_p = network(z, t, condition).double().log_softmax(-1).float().clamp(-70, 0)
        if guidance != 1:
            away = network(z, t, null).double().log_softmax(-1).float().clamp(-70, 0)
            log_p = away + guidance * (log_p - away)
            log_p = (log_p - log_p.logsumexp(-1, keepdim=True)).clamp(-70, 0)
        rank = log_p.sort(-1, descending=True)
        before = rank.values.exp().cumsum(-1) - rank.values.exp()
        keep = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, rank.indices, before < top_p)
        u = torch.where(keep, log_p, torch.tensor(-70.0))
        masked = (z == CODES)[:, None]
        hit = torch.where(torch.arange(CODES)[None] == z[:, None], 0.0, -69.07755)
        at, bt, ct = (b[f"log_cumprod_{x}t"] for x in "abc")
        log_q = torch.where(masked, ct[t], lae(hit + at[t], bt[t]))
        r = torch.cat([u - log_q, torch.full((len(z), 1), -69.07755)], -1)
        s = r.logsumexp(-1, keepdim=True)
        r = r - s
        p = torch.cat(
            [
                lae(r[:, :-1] + at[t - 1], bt[t - 1]),
                lae(r[:, -1:] + b["log_1_min_cumprod_ct"][t - 1], ct[t - 1]),
            ],
            -1,
        )
        one = torch.cat(
            [
                torch.where(masked, b["log_ct"][t], lae(hit + b["log_at"][t], b["log_bt"][t])),
                torch.where(masked, 0.0, -69.07755),
            ],
            -1,
        )
        z = ((p + one + s).clamp(-70, 0) + noise[i]).argmax(-1)
    return z


def test_the_schedule_is_the_checkpoints_own(converted):
    model = converted[0]
    tables = official.tables(T, CODES)
    np.testing.assert_allclose(
        np.exp(np.roll(tables["log_cumprod_at"].double().numpy(), 1)),
        np.array(model.process.unmasked) * np.array(model.process.intact),
        rtol=1e-6,
    )


@ONE
def test_sample_draws_from_it(converted, tmp_path):
    model, *_, folder = converted
    asked = {"text": "--prompt=ab cd", "class": "--label=3", "none": "--seed=1"}[
        model.config.condition.kind
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vqd_jax",
            "sample",
            f"--workdir={folder / 'run'}",
            asked,
            "--num=2",
            "--calls=3",
            f"--out={tmp_path / 'x.png'}",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and (tmp_path / "x.png").stat().st_size > 100, done.stderr


@ONE
def test_training_goes_on_from_it(converted, tmp_path):
    model, *_, folder = converted
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(4)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(
            pictures / f"{i}.png"
        )
        (pictures / f"{i}.txt").write_text("1")
    small = {
        "init_from": folder / "run",
        "folder.path": pictures,
        "diffusion_train.examples": 8,
        "diffusion_train.batch_size": 4,
        "diffusion_optim.warmup": 4,
        "preview.pictures": 1,
        "held_out.examples": 2,
        "held_out.draws": 1,
        "sampling.calls": 2,
    }
    if model.config.condition.kind == "none":
        small |= {"sampling.guidance": 1.0}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vqd_jax.main",
            "--config=configs/folder.py",
            f"--workdir={tmp_path / 'run'}",
            *(f"--config.{key}={value}" for key, value in small.items()),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tuned = pipeline.load(tmp_path / "run")
    flat = lambda tree: {
        jax.tree_util.keystr(path): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    before, after = flat(model.weights), flat(tuned.weights)
    assert before.keys() == after.keys()
    frozen = {name for name in before if "['encoder']" in name}
    assert bool(frozen) == (model.config.condition.kind == "text")
    for name in before:
        assert np.array_equal(before[name], after[name]) == (name in frozen), name
    assert tuned.process == model.process
