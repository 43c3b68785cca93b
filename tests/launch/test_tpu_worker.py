"""launch/tpu_worker.sh: every worker trains with the same arguments, and keeps training's status."""

import pytest

from helpers.launching import clouded

TRAIN = ["--config=configs/emoji.py:gpu", "--workdir=gs://my-bucket/runs/emoji"]


@pytest.fixture
def cloud(tmp_path):
    with clouded(tmp_path, 2) as made:
        made.pushed()
        yield made


@pytest.mark.parametrize("status", [0, 7])
def test_every_worker_trains_in_the_bucket_itself(cloud, status):
    cloud.env["BEHAVE"] = f"echo trained; exit {status}"
    cloud.tpu("start", "--", *TRAIN, ok=True)
    cloud.tpu("logs", ok=status == 0)
    for number, home in enumerate(cloud.homes):
        assert cloud.arguments(number)[2:] == [*TRAIN, "--coordinator=auto"]
        assert (home / "vqd_jax.exit").read_text().split()[0] == str(status)
        assert "trained" in (home / "vqd_jax.log").read_text()
