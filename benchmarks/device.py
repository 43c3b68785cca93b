"""One run of at most four minutes on a GPU or TPU: are the numbers those of the CPU, and how fast
are sampling, training and input?

  python benchmarks/device.py                   (writes results/device-<kind>.json as it goes)
  python benchmarks/device.py --size=small      (on a CPU, to try it)

`numbers` compares what the device computes with what the CPU of the same machine does in float32:
each row has a difference and the largest that is allowed. `sampling` is Base from captions to
images, 25 calls, batch 1 and 16, without guidance and with it in calls where at most half of the
tokens are masked. `training` is a whole step of Base at batch 32. `input` is the loader of
benchmarks/input.py. Layers are scanned, which compiles in a fraction of the time. A part that would
begin after three quarters of the time is left out, and listed. The status is 1 if a number differs
by more than is allowed.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import input
import jax
import jax.numpy as jnp
import numpy as np
import peer
import sampling as sampling_benchmark
import training
from absl import flags

from vqd_jax.config import build
from vqd_jax.core.cores import cores
from vqd_jax.core.prng import root_key
from vqd_jax.data.coco import coco
from vqd_jax.diffusion import schedules
from vqd_jax.models.attention import attend
from vqd_jax.runtime.devices import building_for
from vqd_jax.runtime.rows import Rows
from vqd_jax.samplers.ancestral import Ancestral
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages import jitted, sampling
from vqd_jax.train.dry_run import codec_weights

BATCHES = (1, 16)
TRAINING_BATCH = 32
ROUNDS = 3
LATEST = 0.75  # of the time: no part begins after it


def on(device: jax.Device, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of the jitted function on a device, as NumPy arrays."""
    with building_for(device.platform), jax.default_device(device):
        return jax.device_get(jax.jit(function)(*jax.device_put(arguments, device)))


def distance(a: Any, b: Any) -> float:
    """|a - b| / |b| of all arrays of two trees together."""
    flat = lambda tree: np.concatenate(
        [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    )
    return float(np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b)))


def unequal(a: Any, b: Any) -> float:
    """The share of elements that differ."""
    return float(np.mean(np.asarray(a) != np.asarray(b)))


def numbers(device: jax.Device, size: str) -> Iterator[dict[str, Any]]:
    """Rows of what the device computes, against the CPU."""
    cpu, precise = jax.devices("cpu")[0], jax.default_matmul_precision("highest")

    def row(name: str, difference: float, allowed: float) -> dict[str, Any]:
        passed = bool(difference <= allowed)
        print(f"{name}: {difference:.2g} of {allowed:g}{'' if passed else ', WRONG'}", flush=True)
        return {"name": name, "difference": difference, "allowed": allowed, "passed": passed}

    bits = lambda: jax.random.bits(root_key(7), (10_000,))
    yield row("random bits, share that differs", unequal(on(device, bits), on(cpu, bits)), 0)

    *_, codes, side = peer.SIZES[size]
    process, rng = schedules.released(100, codes), np.random.default_rng(0)
    z = rng.integers(0, codes + 1, (2, side * side)).astype(np.int32)
    log_p = np.asarray(jax.nn.log_softmax(rng.normal(size=(*z.shape, codes)).astype(np.float32)))
    step = lambda log_p, z: jnp.exp(
        process.reverse(log_p, z, jnp.full(len(z), 40), jnp.full(len(z), 60))
    )
    yield row("posterior", distance(*(on(d, step, log_p, z) for d in (device, cpu))), 1e-4)

    q, k, v, g = rng.normal(size=(4, 2, 1024, 256)).astype(np.float32)
    kind = build.diffusion_stage(config("base", "auto"), peer.Tokenizer()).denoiser.attention
    for text, mask in (("self", None), ("cross", np.arange(77)[None, None] < [[[40]], [[77]]])):
        m = 1024 if mask is None else 77

        def attention(kind: str, dtype: Any, q, k, v, g, mask) -> Any:
            q, k, v = (x.astype(dtype) for x in (q, k, v))
            out, back = jax.vjp(lambda *x: attend(*x, 4, mask, kind).astype(jnp.float32), q, k, v)
            return out, back(g)

        given = q, k[:, :m], v[:, :m], g, mask
        mine = on(device, lambda *x: attention(kind, low(device), *x), *given)
        with precise:
            want = on(cpu, lambda *x: attention("full", jnp.float32, *x), *given)
        yield row(f"{text}-attention by {kind}", distance(mine[0], want[0]), 1e-2)
        yield row(f"{text}-attention by {kind}, gradients", distance(mine[1], want[1]), 2e-2)

    case = training.Case.make("small", 8, "none")
    params = jax.device_get(case.params)

    def gradient(dtype: str, params: Any) -> Any:
        stage, _ = peer.ours(config("small", dtype), training.Given())
        weights, extra = stage.from_weights(params)
        loss = lambda p: stage.loss(
            p, extra, None, case.batch, root_key(3), 0, Rows.of_device(len(case.batch["text"]))
        )[0]
        return jax.value_and_grad(loss)(weights)

    with precise:
        want = on(cpu, lambda p: gradient("float32", p), params)
        mine = on(device, lambda p: gradient("float32", p), params)
    yield row("loss, float32", distance(mine[0], want[0]), 1e-4)
    yield row("gradient, float32", distance(mine[1], want[1]), 1e-3)
    mine = on(device, lambda p: gradient("auto", p), params)
    yield row("loss, as trained", distance(mine[0], want[0]), 1e-2)
    yield row("gradient, as trained", distance(mine[1], want[1]), 5e-2)

    def drawn(device: jax.Device) -> tuple[np.ndarray, ...]:
        c = config("small", "float32")
        with building_for(device.platform), jax.default_device(device), precise:
            stage, weights = peer.ours(c)
            tokens = sampling.sample(
                stage,
                jax.device_put(weights, device),
                *sampling_benchmark.arguments(4, 5.0),
                seed=0,
                sampler=Ancestral(calls=25),
                guidance_config=GuidanceConfig(guidance=5.0),
                devices=(device,),
            )
            shape = (4, c.data.image_size, c.data.image_size, 3)
            images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
            shapes = codec_weights(stage.codec, {"image": jax.ShapeDtypeStruct(shape, jnp.uint8)})
            codec = jax.tree.map(
                lambda x: 0.05 * jax.random.normal(root_key(1), x.shape, x.dtype), shapes
            )
            codec, where = jax.device_put(codec, device), dict(devices=(device,))
            encoded = jitted.encode(stage.codec, codec, images, **where)
            some = np.random.default_rng(1).integers(0, c.codebook.codes, tokens.shape)
            decoded = jitted.decode(stage.codec, codec, some.astype(np.int32), **where)
            return tuple(map(np.asarray, (tokens, encoded, decoded)))

    (a, encoded, decoded), (b, encoded_, decoded_) = drawn(device), drawn(cpu)
    # rounding may decide between two tokens, and what is drawn after them is another image then
    yield row("drawn tokens, share that differs", unequal(a, b), 0.3)
    yield row("encoded tokens, share that differs", unequal(encoded, encoded_), 0.01)
    levels = np.abs(decoded.astype(int) - decoded_).max()
    yield row("decoded pixels, levels", float(levels), 1)


def config(size: str, dtype: str) -> Any:
    c = peer.config(size)
    c.denoiser.dtype = c.vqvae.dtype = dtype
    return c


def low(device: jax.Device) -> Any:
    return jnp.float32 if device.platform == "cpu" else jnp.bfloat16


def train(size: str) -> Iterator[dict[str, Any]]:
    """Steps at one batch, as the published configs do them."""
    case = training.Case.make(size, TRAINING_BATCH, "products", scan=True)
    row = training.measure(case, ["step"], 5 * ROUNDS, peer.measured_peak())
    memory = jax.devices()[0].memory_stats() or {}
    yield row | {"peak_bytes": memory.get("peak_bytes_in_use")}


def load() -> Iterator[dict[str, Any]]:
    """The loader with all cores."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "coco"
        input.make_coco(root, 64)
        source = coco(path=str(root))
        for workers in (0, cores()):
            rates = [input.rate(source, cores(), workers, 32, 3.0) for _ in range(ROUNDS)]
            row = {"threads": cores(), "workers": workers, "images_per_second": peer.spread(rates)}
            print(row, flush=True)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="results/device-<kind>.json by default")
    parser.add_argument("--size", choices=peer.SIZES, help="base, and small on a CPU")
    parser.add_argument("--seconds", type=float, default=240.0)
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # Grain asks for it
    began, device = time.monotonic(), jax.devices()[0]
    size = args.size or ("small" if device.platform == "cpu" else "base")
    kind = device.device_kind.lower().replace(" ", "-")
    out = args.out or Path(f"results/device-{kind}.json")
    results: dict[str, Any] = peer.provenance() | {"size": size, "left_out": []}
    memory = device.memory_stats() or {}
    results["memory_bytes"] = memory.get("bytes_limit")
    print(f"{device.device_kind}, {size}: writing {out}", flush=True)
    parts: dict[str, Iterator[dict[str, Any]]] = {
        "numbers": numbers(device, size),
        **{
            f"sampling, batch {batch}, guidance {guidance:g}": sampling_benchmark.pictures(
                size, [batch], ROUNDS, guidances=(guidance,), scan=True
            )
            for batch, guidance in itertools.product(BATCHES, (1.0, sampling_benchmark.GUIDANCE))
        },
        "training": train(size),
        "input": load(),
    }
    for name, rows in parts.items():
        started = time.monotonic()
        if started - began > LATEST * args.seconds:
            results["left_out"].append(name)
            continue
        results[name] = []
        for row in rows:
            results[name].append(row | {"took": round(time.monotonic() - started, 1)})
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")
            started = time.monotonic()
    results["took"] = round(time.monotonic() - began, 1)
    out.write_text(json.dumps(results, indent=1) + "\n")
    wrong = [row["name"] for row in results["numbers"] if not row["passed"]]
    for name in results["left_out"]:
        print(f"left out for lack of time: {name}")
    print(f"{out}, {results['took']:.0f} s")
    sys.exit(f"other numbers than the CPU's: {'; '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
