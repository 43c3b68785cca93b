"""A workdir with all that a report shows."""

import json

import numpy as np

from vqd_jax.config.defaults import defaults
from vqd_jax.core.checksums import array_bytes
from vqd_jax.core.image_grid import save_png
from vqd_jax.inference import loading
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import Log

EVIL = "</script><img src=http://evil.example/x onerror=alert(1)>"


def colours(seed, height=20, width=30):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)


def fill(workdir):
    """A workdir as training, `plan` and `evaluate` leave it, with little in it."""
    rows = [{"step": 0}] + [
        {
            "step": step,
            "train/loss": 5.0 / step,
            "train/examples": step * 8.0,
            "train/step_time": 0.25,
            "train/goodput": 0.5,
            "train/examples_per_second": 32.0,
        }
        for step in range(1, 5001)
    ]
    rows.append({"step": 5000, "held_out/psnr": 20.125, "held_out/loss": None})  # not a number
    (workdir / "vqvae").mkdir(parents=True)
    (workdir / "vqvae" / "metrics.jsonl").write_text(
        "".join(json.dumps(row | {"time": 1e9 + row["step"] / 4}) + "\n" for row in rows)
    )
    log = Log(workdir / "diffusion")
    log.write(10, {"loss": -0.1}, "train/")
    log.write(10, {"loss": 0.1234567890123}, "held_out/")
    log.write(11, {"step": 12, "first_batch": 10, "batches": 2}, "fault/")
    log.close()
    for step in range(100, 5100, 100):
        save_png(workdir / "vqvae" / f"reconstructions-{step:08d}.png", colours(step))
    save_png(workdir / "diffusion" / "samples-00000010.png", colours(1, 1500, 2000))
    save_png(workdir / "samples.png", colours(2))
    for step, counts in ((100, [0, 3, 1]), (200, [2, 2, 0])):
        file = workdir / "vqvae" / f"codes-{step:08d}.npy"
        file.write_bytes(array_bytes(np.array(counts)))
    loading.write_plan(workdir, entropy())
    config = defaults().unlock()
    config.denoiser.layers, config.preview.prompts, config.sampling.calls = 3, (EVIL,), 5
    with Checkpoints(workdir / "diffusion" / "checkpoints") as checkpoints:
        checkpoints.save(10, {"config": json.loads(config.to_json())}, wait=True)
    (workdir / "diffusion" / "machine.json").write_text(
        json.dumps(
            {
                "device": "TPU <v5>",
                "devices": 8,
                "flops_per_step": 2.5e9,
                "versions": {"jax": "1.2.3"},
            }
        )
    )
    (workdir / "mine.json").write_text(json.dumps(EVALUATION))
    save_png(workdir / "mine.png", colours(3))
    (workdir / "other.json").write_text("{}")
    return workdir


def entropy():
    rng = np.random.default_rng(0)
    falling = lambda x: np.sort(x, axis=0)[::-1]
    return {"random": falling(rng.random(12)), "halton": falling(rng.random((12, 12)))}


EVALUATION = {
    "protocol": {"name": "emoji"},
    "provenance": {"steps": {"vqvae": 5000, "diffusion": 10}},
    "sampling": {"calls": 5},
    "reconstruction": {"psnr": 21.5},
    "bound": {"train": {"nats_per_token": 1.0, "bits_per_token": 1.4427}},
    "seen_cells": {
        "generated": {"retrieval@1": 0.25, "chance@1": 0.1, "vgg_kid": 0.5, "vgg_kid_std": 0.125},
        "ceiling": {"retrieval@1": 0.75},
        "images": 1234,
    },
}
