"""Images per second of the sampler, side by side with diffusers' VQDiffusionPipeline with the same weights; and a step alone.

  pip install torch==2.13.0 diffusers==0.30.3      (into an environment that has vqd_jax)
  python benchmarks/sampling.py --out=results/sampling.json

Both draw tokens from captions: CLIP's text tower, 25 network calls with guidance, no decoder. The network has the same random
weights on both sides, and the largest difference of their log-probabilities is printed. Rounds alternate, so that a noisy
machine slows both; the peer runs with the number of threads that suits it best, and its batches whole or picture by picture.
`step` is what a call does after the network: drawing z_s from its logits, here by branches, and densely over all k + 1 states.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vqd_jax import build, pipeline
from vqd_jax.defaults import defaults
from vqd_jax.diffusion import schedules
from vqd_jax.samplers.ancestral import Ancestral, ancestral_stretch, take_branch
from vqd_jax.samplers.prediction import Prediction
from vqd_jax.train import programs
from vqd_jax.train.diffusion import Conditions

SIZES = {  # layers, width, heads, codes, side of the token grid
    "S": (18, 192, 12, 2887, 32),
    "small": (6, 192, 6, 512, 16),
}
CALLS, GUIDANCE = 25, 5.0


class Tokenizer:
    """Stands in for CLIP's, whose vocabulary cannot be had everywhere: any ids take the same time."""

    vocabulary, length, model_max_length, pad = 1000, 77, 77, 0

    def __call__(self, texts, **options):
        ids = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(ids, texts):
            row[:len(text)] = [ord(c) % self.vocabulary for c in text][:self.length]
        if not options:
            return ids
        import torch

        return argparse.Namespace(input_ids=torch.from_numpy(ids).long())

    def to_json(self):
        return "{}"


def ours(size: str):
    """(stage, weights) at a size, with random weights."""
    layers, width, heads, codes, side = SIZES[size]
    c = defaults()
    c.text.encoder = "clip"
    c.clip_text.layers = 12
    c.process.schedule = "released"
    c.codebook.codes = codes
    c.data.image_size = side * build.vqvae_stage(c).model.downsampling
    c.denoiser.layers, c.denoiser.width, c.denoiser.heads = layers, width, heads
    stage = build.diffusion_stage(c, Tokenizer())
    params, _ = jax.jit(stage.init)(jax.random.key(0), {"text": jnp.zeros((1, 77), jnp.int32)})
    rng = np.random.default_rng(0)  # with weights of 0.02 all logits would be alike
    return stage, jax.tree.map(lambda x: x + jnp.asarray(0.05 * rng.normal(size=x.shape), x.dtype), params)


def theirs(size: str, params):
    """VQDiffusionPipeline with the denoiser's weights; its codec hands back the tokens."""
    import torch
    import transformers.utils

    transformers.utils.FLAX_WEIGHTS_NAME = "flax_model.msgpack"  # what diffusers 0.30 misses in transformers 5
    from diffusers import Transformer2DModel, VQDiffusionPipeline, VQDiffusionScheduler
    from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import LearnedClassifierFreeSamplingEmbeddings
    from transformers import CLIPTextConfig, CLIPTextModel

    layers, width, heads, codes, side = SIZES[size]
    network = Transformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, num_layers=layers, cross_attention_dim=512, attention_bias=True,
        sample_size=side, num_vector_embeds=codes + 1, activation_fn="geglu-approximate", num_embeds_ada_norm=100, norm_type="ada_norm")
    network.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in to_diffusers(params["denoiser"], layers).items()})

    class Codec(torch.nn.Module):
        config = argparse.Namespace(vq_embed_dim=1)

        def __init__(self):
            super().__init__()
            self.quantize = argparse.Namespace(get_codebook_entry=lambda sample, shape: sample)

        def decode(self, tokens, force_not_quantize):
            self.tokens = tokens
            return argparse.Namespace(sample=torch.zeros(len(tokens), 3, 1, 1))

    text = CLIPTextModel(CLIPTextConfig(vocab_size=Tokenizer.vocabulary, hidden_size=512, intermediate_size=2048, num_hidden_layers=12,
                                        num_attention_heads=8, bos_token_id=0, eos_token_id=1, pad_token_id=0))
    null = LearnedClassifierFreeSamplingEmbeddings(learnable=True, hidden_size=512, length=77)
    with torch.no_grad():
        null.embeddings.copy_(torch.from_numpy(np.array(params["conditioner"]["null"])))
    pipe = VQDiffusionPipeline.__new__(VQDiffusionPipeline)
    super(VQDiffusionPipeline, pipe).__init__()
    parts = dict(vqvae=Codec(), transformer=network.eval(), text_encoder=text.eval(), tokenizer=Tokenizer(),
                 scheduler=VQDiffusionScheduler(num_vec_classes=codes + 1), learned_classifier_free_sampling_embeddings=null)
    for name, part in parts.items():  # register_modules refuses stand-ins
        object.__setattr__(pipe, name, part)
        pipe.register_to_config(**{name: (None, None)})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def to_diffusers(p, layers: int) -> dict[str, np.ndarray]:
    """This package's denoiser as the state dict of Transformer2DModel."""
    out = {"latent_image_embedding.emb.weight": p["tokens"]["embedding"],
           "latent_image_embedding.height_emb.weight": p["rows"]["embedding"],
           "latent_image_embedding.width_emb.weight": p["columns"]["embedding"], "norm_out.weight": p["norm"]["scale"],
           "norm_out.bias": p["norm"]["bias"]}

    def linear(name, layer, part=0, parts=1):
        for key, x in (("weight", layer["kernel"].T), ("bias", layer["bias"])):
            out[f"{name}.{key}"] = np.split(np.asarray(x), parts)[part]

    linear("out", p["head"])
    for i in range(layers):
        b, name = p[f"block{i}"], f"transformer_blocks.{i}"
        for norm in ("norm1", "norm2"):
            out[f"{name}.{norm}.emb.weight"] = b[norm]["table"]["embedding"]
            linear(f"{name}.{norm}.linear", b[norm]["linear"])
        out[f"{name}.norm3.weight"], out[f"{name}.norm3.bias"] = b["norm3"]["scale"], b["norm3"]["bias"]
        for j, key in enumerate(("to_q", "to_k", "to_v")):
            linear(f"{name}.attn1.{key}", b["self_attention"]["qkv"], j, 3)
        linear(f"{name}.attn1.to_out.0", b["self_attention"]["out"])
        linear(f"{name}.attn2.to_q", b["cross_attention"]["q"])
        linear(f"{name}.attn2.to_k", b["cross_attention"]["kv"], 0, 2)
        linear(f"{name}.attn2.to_v", b["cross_attention"]["kv"], 1, 2)
        linear(f"{name}.attn2.to_out.0", b["cross_attention"]["out"])
        linear(f"{name}.ff.net.0.proj", b["mlp_in"])
        linear(f"{name}.ff.net.2", b["mlp_out"])
    return out


def whole(size: str, batches: list[int], rounds: int) -> list[dict]:
    """A row per batch. The peer's number of threads is the better one at batch 1, and it may run a batch one by one."""
    import torch

    stage, params = ours(size)
    pipe = theirs(size, params)
    differ = difference(stage, params, pipe)
    sampler, prediction = Ancestral(calls=CALLS), Prediction(guidance=GUIDANCE)

    def mine(batch: int):
        ids = np.stack([Tokenizer()([f"a photo of bird number {i}" for i in range(batch)])] * 2)
        drop = np.array([[False] * batch, [True] * batch])
        scales = np.full((1, batch), GUIDANCE, np.float32)
        return programs.sample(stage, params, Conditions(ids, drop), scales, seed=0, sampler=sampler, prediction=prediction)

    def peer(batch: int):
        prompts = [f"a photo of bird number {i}" for i in range(batch)]
        pipe(prompts, num_inference_steps=CALLS, guidance_scale=GUIDANCE, output_type="np")
        return pipe.vqvae.tokens

    timed = {}
    for threads in sorted({1, os.cpu_count() // 2 or 1, os.cpu_count()}):
        torch.set_num_threads(threads)
        timed[threads] = clock(lambda: peer(1))
    threads = min(timed, key=timed.get)
    torch.set_num_threads(threads)
    rows, one_by_one = [], 0.0
    for batch in batches:
        mine(batch)
        seconds = {"vqd_jax": [], "diffusers": []}
        for _ in range(rounds if batch == 1 else max(rounds // 2, 1)):
            seconds["vqd_jax"].append(clock(lambda batch=batch: mine(batch)))
            seconds["diffusers"].append(clock(lambda batch=batch: peer(batch)))
        rate = {name: batch / statistics.median(values) for name, values in seconds.items()}
        rate["diffusers"] = max(rate["diffusers"], one_by_one)
        one_by_one = rate["diffusers"] if batch == 1 else one_by_one
        rows.append({"size": size, "batch": batch, "calls": CALLS, "guidance": GUIDANCE, "peer_threads": threads, "images_per_second": rate,
                     "ratio": rate["vqd_jax"] / rate["diffusers"], "seconds": seconds, "difference_of_log_p": differ})
        print(f"{size:6} batch {batch}: {rate['vqd_jax']:.3f} images/s, diffusers {rate['diffusers']:.3f} ({threads} threads), "
              f"{rows[-1]['ratio']:.2f} times; log p differ by at most {differ:.1e}", flush=True)
    return rows


def difference(stage, params, pipe) -> float:
    """Between the log-probabilities of the two networks for the same tokens and text states."""
    import torch

    rng, n, k = np.random.default_rng(0), int(np.prod(stage.denoiser.grid)), stage.denoiser.codes
    z, text = rng.integers(0, k + 1, (2, n)).astype(np.int32), rng.normal(size=(2, 77, 512)).astype(np.float32)
    a = jax.nn.log_softmax(stage.denoiser.apply({"params": params["denoiser"]}, jnp.asarray(z), jnp.full(2, 30), jnp.asarray(text),
                                                jnp.ones((2, 77), bool)))
    with torch.no_grad():
        b = pipe.transformer(torch.from_numpy(z).long(), encoder_hidden_states=torch.from_numpy(text), timestep=torch.tensor(29)).sample
    return float(np.abs(np.asarray(a) - b.numpy().swapaxes(1, 2)).max())


def steps(size: str, batches: list[int], rounds: int) -> list[dict]:
    return [step(size, batch, rounds * 10) for batch in batches]


def step(size: str, batch: int, rounds: int) -> dict:
    """Seconds and temporary memory of drawing z_s from logits, both ways, for strided steps of the schedule."""
    *_, k, side = SIZES[size]
    process, n = schedules.released(100, k), side * side
    logits = jax.random.normal(jax.random.key(1), (batch, n, k))
    z = jnp.where(jax.random.bernoulli(jax.random.key(2), 0.5, (batch, n)), k, jax.random.randint(jax.random.key(3), (batch, n), 0, k))
    keys = programs.image_keys(0, 0, batch)
    stretch = ancestral_stretch(process, np.linspace(100, 0, CALLS + 1).round().astype(int))
    numbers = jax.tree.map(lambda x: x[12], stretch.numbers)
    t, s = jnp.full(batch, 52), jnp.full(batch, 48)

    def branch(keys, logits, z):
        return take_branch(keys, 12, process, logits, z, numbers)

    def dense(keys, logits, z):
        log_p = process.reverse(jax.nn.log_softmax(logits), z, s, t)
        gumbel = jax.vmap(lambda key: jax.random.gumbel(key, log_p.shape[1:]))(keys)
        return (log_p + gumbel).argmax(-1)

    compiled = {name: jax.jit(f).lower(keys, logits, z).compile() for name, f in (("branches", branch), ("dense", dense))}
    seconds = {name: [] for name in compiled}
    for program in compiled.values():
        jax.block_until_ready(program(keys, logits, z))
    for _ in range(rounds):
        for name, program in compiled.items():
            seconds[name].append(clock(lambda program=program: jax.block_until_ready(program(keys, logits, z))))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    memory = {name: program.memory_analysis().temp_size_in_bytes / 2**20 for name, program in compiled.items()}
    row = {"size": size, "batch": batch, "seconds": median, "ratio": median["dense"] / median["branches"], "temporary_mib": memory,
           "logits_mib": logits.nbytes / 2**20}
    print(f"{size:6} batch {batch}: a step takes {median['branches'] * 1e3:.1f} ms, densely {median['dense'] * 1e3:.1f} ms, "
          f"{row['ratio']:.1f} times; memory {memory['branches']:.0f} and {memory['dense']:.0f} MiB beside "
          f"{row['logits_mib']:.0f} of logits", flush=True)
    return row


def clock(f) -> float:
    started = time.perf_counter()
    f()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/sampling.json"))
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="*", default=["step", "whole"], choices=["step", "whole"])
    args = parser.parse_args()
    pipeline.compilation_cache()
    key = f"python {'.'.join(platform.python_version_tuple()[:2])}"
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    commit = subprocess.run(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True)
    results[key] = results.get(key, {}) | {"commit": commit.stdout.strip() or None, "jax": jax.__version__, "cpus": os.cpu_count(),
                                           "device": jax.devices()[0].device_kind, "machine": platform.processor() or platform.machine()}
    for part in args.parts:
        measure = {"step": steps, "whole": whole}[part]
        results[key][part] = [row for size in args.sizes for row in measure(size, args.batches, args.rounds)]
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
