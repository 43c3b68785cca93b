"""Training of a model of one number in a process of its own or in the test's: the whole loop in
under a second.
"""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from helpers import ROOT
from vqd_jax.cli import runner
from vqd_jax.data.loader import Loader
from vqd_jax.runtime import signals
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import TIMINGS, Log
from vqd_jax.runtime.parallel import parallelism
from vqd_jax.train import loop
from vqd_jax.train.guard import Guard
from vqd_jax.train.optim import Optim
from vqd_jax.train.profile import Profile
from vqd_jax.train.resume import stored_record

OPTIM = dict(
    learning_rate=0.1,
    warmup=0,
    decay="constant",
    final=1.0,
    betas=(0.9, 0.9),
    weight_decay=0.0,
    clip=0.0,
    muon=0.0,
)
TRAIN = dict(
    examples=120,
    batch_size=2,
    accumulate=1,
    ema=0.9,
    log_every=10,
    evaluate_every=60,
    save_every=40,
    save_minutes=0.0,
    keep=2,
    best="",
)
GUARD = dict(spike=10.0, tries=3, hang=0.0, hang_seconds=1.0)


@dataclasses.dataclass(frozen=True)
class Mean:
    """Learns the mean of the examples; `extra` is their sum."""

    watched = "loss"
    unchanged = None
    positions, dtype = 1, jnp.float32

    def init(self, key, batch):
        return {"mean": jnp.zeros(())}, {"seen": jnp.zeros(())}

    def loss(self, params, extra, frozen, batch, key, step, rows):
        noise = 0.01 * jax.vmap(jax.random.normal)(rows.keys(key))
        loss = jnp.square(params["mean"] - batch["x"] + noise).mean()
        return loss, ({"x": batch["x"]}, {"loss": loss})

    def update_extra(self, extra, aux, key, step, axis):
        return {"seen": extra["seen"] + aux["x"].sum()}, {}

    def weights_of(self, params, extra):
        return params

    def from_weights(self, weights):
        return weights, {"seen": jnp.zeros(())}


def example(i, bad):
    """The i-th example; `bad` maps a batch of two to the value of its examples."""
    return {"x": np.float32(bad.get(i // 2, 1.0 + i % 7 / 7))}


def train(
    folder,
    bad=None,
    *,
    stage=Mean(),
    evaluate=lambda step, weights: {"mean": weights["mean"]},
    load=None,
    parallel=None,
    log=Log,
    **changed,
):
    """A run in `folder`, on one device unless `parallel` says otherwise, with `changed` keys of
    TRAIN and GUARD. `log` makes the log of a folder.
    """
    settings = TRAIN | {k: v for k, v in changed.items() if k in TRAIN}
    guard = GUARD | {k: v for k, v in changed.items() if k in GUARD}
    with Checkpoints(folder / "checkpoints", keep=settings["keep"]) as checkpoints:
        pace = stored_record("toy", checkpoints, settings["batch_size"]).pace
        loader = Loader(
            range(10_000),
            batch_size=settings["batch_size"],
            start=pace.position,
            seed=0,
            shuffle=False,
            load=load or (lambda i, rng: example(i, bad or {})),
        )
        loop.Trainer(
            name="toy",
            stage=stage,
            train=loop.Train(**settings, pace=pace),
            optim=Optim(**OPTIM),
            guard=Guard(**guard),
            profile=Profile(steps=0),
            loader=loader,
            parallel=parallel or parallelism(devices=1),
            checkpoints=checkpoints,
            log=log(folder),
            key=jax.random.key(0),
            frozen={},
            items={"config": {}},
            evaluate=evaluate,
        ).run()


def rows(folder):
    """The lines of metrics.jsonl, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def contents(folder):
    """(newest step, its state, its record, the lines of metrics.jsonl)."""
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    return (
        checkpoints.latest_step(),
        checkpoints.restore("state"),
        checkpoints.restore("record"),
        rows(folder),
    )


def environment():
    """The environment of a process that imports this module."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def script(text):
    """A process that runs `text`, in which this module's names, `signals` and `runner` are known."""
    code = "\n".join(
        ["import sys, time", "from helpers.toy_training import *", textwrap.dedent(text)]
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def waits(
    at, seconds, folder, evaluate="lambda step, weights: {'mean': weights['mean']}", **changed
):
    """The text of a script that trains in `folder` and sleeps before batch `at` is loaded, after it
    has printed "there".
    """
    return f"""
def load(i, rng):
    if i == 2 * {at}:
        print("there", flush=True)
        time.sleep({seconds})
    return example(i, {{}})
signals.install_handlers()
main = lambda: train(Path({str(folder)!r}), load=load, evaluate={evaluate}, **{changed})
sys.exit(runner.status(main, again="resumes from the last checkpoint"))
"""


if __name__ == "__main__":  # as `python -m helpers.toy_training FOLDER`
    signals.install_handlers()
    again = "resumes from the last checkpoint"
    sys.exit(runner.status(lambda: train(Path(sys.argv[1])), again=again))
