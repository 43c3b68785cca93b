"""What the benchmarks beside PyTorch share: sizes, the same weights on both sides, the machine and
what it can do.

The peer is diffusers 0.30.3 on torch 2.13, in processes of its own (turns.py).
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vqd_jax.config import build, paper
from vqd_jax.config.defaults import defaults
from vqd_jax.core.cores import cores
from vqd_jax.runtime.compile_cache import enable_compilation_cache

SIZES = {  # layers, width, heads, codes, side of the token grid
    "S": (18, 192, 12, 2887, 32),
    "small": (6, 192, 6, 512, 16),
    "base": (19, 1024, 16, 2887, 32),  # as published; for accelerators
}


class Tokenizer:
    """Stub of CLIP's tokenizer, whose vocabulary must be downloaded: any ids take the same time."""

    vocabulary, length, model_max_length, pad = 1000, 77, 77, 0

    def __call__(self, texts, **options):
        ids = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(ids, texts):
            row[: len(text)] = [ord(c) % self.vocabulary for c in text][: self.length]
        if not options:
            return ids
        import torch

        return argparse.Namespace(input_ids=torch.from_numpy(ids).long())

    def to_json(self):
        return "{}"


def config(size: str) -> ConfigDict:
    """The published loss, schedule and optimizer, and the tower of CLIP, at a size; base with the
    published codec.
    """
    layers, width, heads, codes, side = SIZES[size]
    c = defaults()
    c.text.encoder = "clip"
    c.clip_text.layers = 12
    c.process.schedule = "released"
    c.diffusion_loss.adaptive_auxiliary = True
    if size == "base":
        paper.codec(c, 8, codes)
    c.codebook.codes = codes
    c.data.image_size = side * build.vqvae_stage(c).model.downsampling
    c.denoiser.layers, c.denoiser.width, c.denoiser.heads = layers, width, heads
    return c


def ours(c: ConfigDict, encoder: Any = None) -> tuple[Any, Any]:
    """(stage, weights) of a config, with random weights; `encoder` in place of the tower."""
    stage = build.diffusion_stage(c, Tokenizer())
    stage = (
        dataclasses.replace(stage, conditioner=stage.conditioner.clone(encoder=encoder))
        if encoder
        else stage
    )
    shapes, _ = jax.eval_shape(
        stage.init, jax.random.key(0), {"text": jnp.zeros((1, 77), jnp.int32)}
    )
    keys = map(functools.partial(jax.random.fold_in, jax.random.key(0)), itertools.count())

    def draw(path, x):  # with weights of 0.02 all logits would be alike
        centre, width = path[-1].key == "scale", 1.0 if path[-1].key == "null" else 0.05
        return centre + width * jax.random.normal(next(keys), x.shape, x.dtype)

    return stage, jax.tree_util.tree_map_with_path(draw, shapes)


def network(size: str, params: Any) -> Any:
    """Transformer2DModel, as VQDiffusionPipeline uses it, with the denoiser's weights."""
    import torch
    import transformers.utils

    transformers.utils.FLAX_WEIGHTS_NAME = (
        "flax_model.msgpack"  # what diffusers 0.30 misses in transformers 5
    )
    from diffusers import Transformer2DModel

    layers, width, heads, codes, side = SIZES[size]
    model = Transformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        num_layers=layers,
        cross_attention_dim=512,
        attention_bias=True,
        sample_size=side,
        num_vector_embeds=codes + 1,
        activation_fn="geglu-approximate",
        num_embeds_ada_norm=100,
        norm_type="ada_norm",
    )
    model.load_state_dict(
        {
            name: torch.from_numpy(np.array(x))
            for name, x in to_diffusers(params["denoiser"], layers).items()
        }
    )
    return model


def to_diffusers(p, layers: int) -> dict[str, np.ndarray]:
    """This package's denoiser as the state dict of Transformer2DModel."""
    out = {
        "latent_image_embedding.emb.weight": p["tokens"]["embedding"],
        "latent_image_embedding.height_emb.weight": p["rows"]["embedding"],
        "latent_image_embedding.width_emb.weight": p["columns"]["embedding"],
        "norm_out.weight": p["norm"]["scale"],
        "norm_out.bias": p["norm"]["bias"],
    }

    def linear(name, layer, part=0, parts=1):
        for key, x in (("weight", layer["kernel"].T), ("bias", layer["bias"])):
            out[f"{name}.{key}"] = np.split(np.asarray(x), parts)[part]

    linear("out", p["head"])
    for i in range(layers):
        b, name = p[f"block{i}"], f"transformer_blocks.{i}"
        for norm in ("norm1", "norm2"):
            out[f"{name}.{norm}.emb.weight"] = b[norm]["table"]["embedding"]
            linear(f"{name}.{norm}.linear", b[norm]["linear"])
        out[f"{name}.norm3.weight"], out[f"{name}.norm3.bias"] = (
            b["norm3"]["scale"],
            b["norm3"]["bias"],
        )
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


def clock(f: Callable[[], Any]) -> float:
    """Seconds until f, and all that it started, is done."""
    started = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - started


def measured_peak() -> float:
    """FLOP/s of the best of twenty products of two square matrices, float32 on a CPU and bfloat16
    elsewhere.
    """
    n, dtype = (2048, jnp.float32) if jax.default_backend() == "cpu" else (8192, jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    return 2 * n**3 / min(clock(lambda: product(x, x)) for _ in range(20))


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "quartiles": [low, high]}


def start(device: str | None) -> None:
    """JAX on the device asked for, with its cache of compiled programs."""
    if device:
        jax.config.update("jax_platforms", {"gpu": "cuda,cpu"}.get(device, device))
    enable_compilation_cache()


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def write(out: Path, part: str, rows: list[dict]) -> None:
    """Into the results of this Python and machine, with what produced them."""
    made = provenance()
    key = (
        f"python {'.'.join(platform.python_version_tuple()[:2])}, "
        f"{made['machine'] if made['device'] == 'cpu' else made['device']}"
    )
    results = json.loads(out.read_text()) if out.exists() else {}
    results[key] = results.get(key, {}) | made | {part: rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


def provenance() -> dict[str, Any]:
    """The code, the versions and the machine, and how busy it was: processes that wanted to run in
    the last one and 15 minutes.
    """
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
    )
    versions = {}
    for name in ("jax", "flax", "optax", "orbax-checkpoint", "torch", "diffusers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return {
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        **versions,
        "cpus": cores(),
        "device": jax.devices()[0].device_kind,
        "machine": model[1] if model else platform.machine(),
        "load": [round(load, 1) for load in os.getloadavg()[::2]],
    }
