"""Checkpoints in a bucket, of a Cloud Storage in memory; and addresses that are none."""

import os
import subprocess
import sys

import pytest

from helpers import fake_gcs
from helpers.toy_training import environment
from vqd_jax.core.buckets import as_path, is_bucket
from vqd_jax.core.errors import UserError

SCRIPT = """
import sys
import numpy as np
from vqd_jax.core.errors import UserError
from vqd_jax.core.checksums import CHECKSUMS
from vqd_jax.runtime.checkpoint import Best, Checkpoints

weights = lambda step: {"a": np.full((3, 4), step, np.float32), "b": {"c": np.arange(5)}}
with Checkpoints("gs://bucket/run/checkpoints") as checkpoints:
    assert checkpoints.steps() == [] and checkpoints.latest_step() is None
    for step in (1, 2, 3):
        checkpoints.save(step, {"weights": weights(step), "config": {"step": step}})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    checkpoints.mark_best(Best(step=2, measure="psnr", value=20.0))
    for step in (4, 5):
        checkpoints.save(step, {"weights": weights(step)})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5] and checkpoints.best().step == 2
    checkpoints.save(4, {"weights": weights(40)}, wait=True)  # training went back
    assert checkpoints.steps() == [2, 4]
folder = checkpoints.folder
(folder / "4" / "weights" / "extra").write_bytes(b"of a new file")
(folder / "9" / "weights" / "data").write_bytes(b"of a killed save")
other = Checkpoints("gs://bucket/run/checkpoints/", read_only=True)
assert other.latest_step() == 4 and other.restore("config", step=2) == {"step": 2}
np.testing.assert_array_equal(other.restore("weights")["a"], weights(40)["a"])
assert (folder / "9").is_dir()
Checkpoints(folder)
assert not (folder / "9").is_dir()
next((folder / "4" / "weights").glob("manifest*")).write_bytes(b"damaged")
assert Checkpoints(folder, read_only=True).latest_step() == 2
try:
    Checkpoints(folder, read_only=True).restore("weights", step=4)
except UserError as error:
    print(error)
"""


@pytest.mark.slow  # 20 s
def test_checkpoints_in_a_bucket():
    pytest.importorskip("gcsfs")
    command = [sys.executable, "-c", SCRIPT]
    with fake_gcs.running() as server:
        env = environment() | fake_gcs.environment(server)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (
        "checkpoint step 4 in gs://bucket/run/checkpoints is damaged: weights/manifest"
        in done.stdout
    )


@pytest.mark.parametrize(
    "address", ["gs://", "gs://bucket", "s3://bucket/a", "gs://b/a b", "gs://b//a"]
)
def test_addresses_that_are_none_get_a_sentence(address):
    with pytest.raises(UserError, match="write a local folder or gs://BUCKET/FOLDER"):
        as_path(address)


def test_paths():
    assert not is_bucket("runs/gs") and not is_bucket(as_path(os.curdir))
    path = as_path("gs://bucket/runs/a/")
    assert is_bucket(path) and os.fspath(path / "b") == "gs://bucket/runs/a/b"


def test_without_gcsfs_the_sentence_has_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "vqd_jax\[gcs\]"'):
        as_path("gs://bucket/a")
