"""Images per second of the sampler, side by side with diffusers' VQDiffusionPipeline with the same
weights, as pip installs it and at its best (turns.py); and a step alone.

  pip install torch==2.13.0 diffusers==0.30.3      (into an environment that has vqd_jax)
  apt-get install gcc g++ libjemalloc2             (for what makes PyTorch faster)
  python benchmarks/sampling.py --out=results/sampling.json
  python benchmarks/sampling.py --device=gpu --sizes=base --parts step pictures --batches 1 8 32
  (elsewhere)

Both draw tokens from captions: CLIP's text tower, 25 network calls with guidance, no decoder. The
network has the same random weights on both sides, and the largest difference of their
log-probabilities is recorded. All take turns, so that a noisy machine slows each; the peer runs
with the number of threads that is fastest. `step` is what a call does after the network: it draws
z_s from the logits, with our coefficients, and densely over all k + 1 states. `pictures` is ours
alone, from captions to uint8 images: without guidance, and with it in calls where at most half of
the tokens are masked. The share of the machine's peak is that of matrix products and convolutions.
"""

import argparse
import functools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peer
import turns

from vqd_jax.diffusion import schedules
from vqd_jax.runtime.devices import local_devices
from vqd_jax.runtime.hardware import chip
from vqd_jax.samplers.ancestral import Ancestral, posterior_phase, posterior_step
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages import jitted, sampling
from vqd_jax.stages.token_stage import Conditioning
from vqd_jax.train.cost.flops import flops
from vqd_jax.train.dry_run import codec_weights

CALLS, GUIDANCE = 25, 5.0


def theirs(size: str, params, options: frozenset[str] = frozenset()):
    """VQDiffusionPipeline with the denoiser's weights; its codec hands back the tokens."""
    import torch

    network = peer.network(size, params)
    from diffusers import VQDiffusionPipeline, VQDiffusionScheduler
    from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import (
        LearnedClassifierFreeSamplingEmbeddings,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    class Codec(torch.nn.Module):
        config = argparse.Namespace(vq_embed_dim=1)
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.quantize = argparse.Namespace(get_codebook_entry=lambda sample, shape: sample)

        def decode(self, tokens, force_not_quantize):
            self.tokens = tokens
            return argparse.Namespace(sample=torch.zeros(len(tokens), 3, 1, 1))

    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=peer.Tokenizer.vocabulary,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=8,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    null = LearnedClassifierFreeSamplingEmbeddings(learnable=True, hidden_size=512, length=77)
    with torch.no_grad():
        null.embeddings.copy_(torch.from_numpy(np.array(params["conditioner"]["null"])))
    pipe = VQDiffusionPipeline.__new__(VQDiffusionPipeline)
    super(VQDiffusionPipeline, pipe).__init__()
    parts = dict(
        vqvae=Codec(),
        transformer=network.eval(),
        text_encoder=text.eval(),
        tokenizer=peer.Tokenizer(),
        scheduler=VQDiffusionScheduler(num_vec_classes=network.config.num_vector_embeds),
        learned_classifier_free_sampling_embeddings=null,
    )
    for name, part in parts.items():  # register_modules refuses stand-ins
        object.__setattr__(pipe, name, part)
        pipe.register_to_config(**{name: (None, None)})
    pipe.set_progress_bar_config(disable=True)
    if "compile" in options:
        for holder, name in (
            (pipe, "transformer"),
            (pipe, "text_encoder"),
            (pipe, "truncate"),
            (pipe.scheduler, "q_posterior"),
        ):
            object.__setattr__(holder, name, torch.compile(getattr(holder, name)))
    return pipe


def arguments(batch: int, guidance: float) -> tuple[Conditioning, np.ndarray]:
    """Captions, each with the null at its side, and their scales."""
    ids = np.stack([peer.Tokenizer()([f"a photo of bird number {i}" for i in range(batch)])] * 2)
    return Conditioning(ids, np.array([[False] * batch, [True] * batch])), np.full(
        (1, batch), guidance, np.float32
    )


def whole(
    size: str, batches: list[int], rounds: int, options: Sequence[str], python: str
) -> list[dict]:
    """A row per batch.

    Where there are several devices, as with JAX_NUM_CPU_DEVICES=2, they share a batch; `vqd sample`
    gives each its --batch.
    """
    stage, params = peer.ours(peer.config(size))
    peak = peer.measured_peak()
    how = dict(
        seed=0, sampler=Ancestral(calls=CALLS), guidance_config=GuidanceConfig(guidance=GUIDANCE)
    )
    rows = []
    for batch in batches:
        given = arguments(batch, GUIDANCE)
        devices = local_devices(batch)
        draw = lambda given=given, devices=devices: sampling.sample(
            stage, params, *given, **how, devices=devices
        )
        count = operations(stage, params, *given, **how)
        told = {"size": size, "batch": batch}
        tried = [name for name in options if batch > 1 or name != "parts"]
        with turns.contest([python, __file__], told, tried) as contest:
            sides = {"vqd_jax": functools.partial(turns.timed, draw)} | contest.peers
            compared = turns.compare(sides, batch, count, peak, rounds)
            rows.append(
                {
                    "size": size,
                    "batch": batch,
                    "devices": len(devices),
                    "calls": CALLS,
                    "guidance": GUIDANCE,
                    "measured_peak": peak,
                    "tried": contest.tried,
                    "peers": contest.settings,
                    "sides": compared,
                }
            )
        print(
            f"{size:6} batch {batch} on {len(devices)}\n{turns.summary(compared)}",
            flush=True,
        )
    return rows


def serve(size: str, batch: int, options: list[str]) -> None:
    """Batches of the peer, for `turns.Peer`."""
    import torch

    stage, params = peer.ours(peer.config(size))
    pipe = theirs(size, params, frozenset(options))
    differ = difference(stage, params, pipe)
    prompts = [f"a photo of bird number {i}" for i in range(batch)]
    one_by_one = [[prompt] for prompt in prompts]

    def draw():
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in options):
            for part in one_by_one if "parts" in options else [prompts]:
                pipe(part, num_inference_steps=CALLS, guidance_scale=GUIDANCE, output_type="np")

    turns.serve(draw, difference_of_log_p=differ)


def difference(stage, params, pipe) -> float:
    """Between the log-probabilities of the two networks for the same tokens and text states."""
    import torch

    rng, n, k = np.random.default_rng(0), int(np.prod(stage.denoiser.grid)), stage.denoiser.codes
    z, text = (
        rng.integers(0, k + 1, (2, n)).astype(np.int32),
        rng.normal(size=(2, 77, 512)).astype(np.float32),
    )
    a = jax.nn.log_softmax(
        stage.denoiser.apply(
            {"params": params["denoiser"]},
            jnp.asarray(z),
            jnp.full(2, 30),
            jnp.asarray(text),
            jnp.ones((2, 77), bool),
        )
    )
    with torch.no_grad():
        b = pipe.transformer(
            torch.from_numpy(z).long(),
            encoder_hidden_states=torch.from_numpy(text),
            timestep=torch.tensor(29),
        ).sample
    return float(np.abs(np.asarray(a) - b.numpy().swapaxes(1, 2)).max())


def pictures(
    size: str,
    batches: list[int],
    rounds: int,
    *,
    guidances: tuple[float, ...] = (1.0, GUIDANCE),
    scan: bool = False,
) -> Iterator[dict[str, Any]]:
    """A row per batch and guidance. With `scan` one layer is compiled for all."""
    c = peer.config(size)
    c.denoiser.scan = scan
    (stage, params), side = peer.ours(c), c.data.image_size
    shapes = codec_weights(
        stage.codec, {"image": jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)}
    )
    codec = jax.tree.map(
        lambda x: 0.05 * jax.random.normal(jax.random.key(1), x.shape, x.dtype), shapes
    )
    peak, known = peer.measured_peak(), chip(jax.devices()[0].device_kind)
    for guidance in guidances:
        how = dict(
            seed=0,
            sampler=Ancestral(calls=CALLS),
            guidance_config=GuidanceConfig(guidance=guidance, guidance_below=0.5),
        )
        draw = lambda weights, *given, how=how: jitted.decode(
            stage.codec, weights[1], sampling.sample(stage, weights[0], *given, **how)
        )
        for batch in batches:
            given = (params, codec), *arguments(batch, guidance)
            draw(*given)
            seconds = [
                peer.clock(lambda draw=draw, given=given: draw(*given)) for _ in range(rounds)
            ]
            median = statistics.median(seconds)
            count = operations(stage, params, *given[1:], **how, codec_weights=codec)
            print(
                f"{size:6} batch {batch}, guidance {guidance:g}: {batch / median:.3f} images/s, "
                f"{median * 1e3:.0f} ms, "
                f"{count / batch / 1e12:.2f} TFLOP a picture, {count / median / peak:.0%} of the "
                "measured peak" + (f", MFU {count / median / known.peak:.0%}" if known else ""),
                flush=True,
            )
            yield {
                "size": size,
                "batch": batch,
                "calls": CALLS,
                "guidance": guidance,
                "images_per_second": batch / median,
                "flops": count,
                "seconds": seconds,
                "share_of_measured_peak": count / median / peak,
                "measured_peak": peak,
            } | ({"mfu": count / median / known.peak} if known else {})


def operations(
    stage,
    weights,
    conditions: Conditioning,
    scales: np.ndarray,
    *,
    seed: int,
    sampler,
    guidance_config,
    codec_weights: Any = None,
) -> int:
    """Of the products and convolutions of sampling a batch, and decoding it with these weights."""
    static_guidance = guidance_config.static_guidance(guided=bool((scales != 1).any()))
    dynamic = {"scales": jnp.asarray(scales), "temperature": 1.0, "top_p": 1.0}

    def program(weights, codec_weights, conditions):
        keys = sampling.image_keys(seed, 0, scales.shape[1])
        tokens = stage.sample(weights, keys, conditions, dynamic, sampler, static_guidance)
        return tokens if codec_weights is None else stage.codec.decode(codec_weights, tokens)

    return flops(jax.make_jaxpr(program)(weights, codec_weights, conditions).jaxpr)


def steps(size: str, batches: list[int], rounds: int) -> list[dict]:
    return [step(size, batch, rounds * 10) for batch in batches]


def step(size: str, batch: int, rounds: int) -> dict:
    """Seconds and temporary memory of drawing z_s from logits, both ways, for strided steps of the
    schedule.
    """
    *_, k, side = peer.SIZES[size]
    process, n = schedules.released(100, k), side * side
    logits = jax.random.normal(jax.random.key(1), (batch, n, k))
    z = jnp.where(
        jax.random.bernoulli(jax.random.key(2), 0.5, (batch, n)),
        k,
        jax.random.randint(jax.random.key(3), (batch, n), 0, k),
    )
    keys = sampling.image_keys(0, 0, batch)
    phase = posterior_phase(process, np.linspace(100, 0, CALLS + 1).round().astype(int))
    coefficients = jax.tree.map(lambda x: x[12], phase.coefficients)
    t, s = jnp.full(batch, 52), jnp.full(batch, 48)

    def branch(keys, logits, z):
        return posterior_step(keys, 12, process, logits, z, coefficients)

    def dense(keys, logits, z):
        log_p = process.reverse(jax.nn.log_softmax(logits), z, s, t)
        gumbel = jax.vmap(lambda key: jax.random.gumbel(key, log_p.shape[1:]))(keys)
        return (log_p + gumbel).argmax(-1)

    compiled = {
        name: jax.jit(f).lower(keys, logits, z).compile()
        for name, f in (("branches", branch), ("dense", dense))
    }
    seconds = {name: [] for name in compiled}
    for program in compiled.values():
        jax.block_until_ready(program(keys, logits, z))
    for _ in range(rounds):
        for name, program in compiled.items():
            seconds[name].append(
                peer.clock(lambda program=program: jax.block_until_ready(program(keys, logits, z)))
            )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    memory = {
        name: program.memory_analysis().temp_size_in_bytes / 2**20
        for name, program in compiled.items()
    }
    row = {
        "size": size,
        "batch": batch,
        "seconds": median,
        "ratio": median["dense"] / median["branches"],
        "temporary_mib": memory,
        "logits_mib": logits.nbytes / 2**20,
    }
    print(
        f"{size:6} batch {batch}: a step takes {median['branches'] * 1e3:.1f} ms, densely "
        f"{median['dense'] * 1e3:.1f} ms, "
        f"{row['ratio']:.1f} times; memory {memory['branches']:.0f} and {memory['dense']:.0f} MiB "
        "beside "
        f"{row['logits_mib']:.0f} of logits",
        flush=True,
    )
    return row


def main() -> None:
    parser = turns.options(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/sampling.json"))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--parts", nargs="*", default=["step", "whole"], choices=["step", "whole", "pictures"]
    )
    args = parser.parse_args()
    peer.start(args.device)
    if args.peer:
        return serve(**args.peer)
    devices = jax.local_device_count()
    measures = {
        "step": steps,
        "whole": functools.partial(whole, options=args.options, python=args.peer_python),
        "pictures": pictures,
    }
    for part in args.parts:
        name = part if devices == 1 else f"{part} on {devices} devices"
        measure = measures[part]
        peer.write(
            args.out,
            name,
            [row for size in args.sizes for row in measure(size, args.batches, args.rounds)],
        )
    print(args.out)


if __name__ == "__main__":
    main()
