"""Weights & Biases beside the record, without a network; TensorBoard is tested with the log."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from vqd_jax.core.errors import UserError
from vqd_jax.runtime.log import TIMINGS, Log, read_metrics
from vqd_jax.runtime.trackers import WandB, check_wandb
from vqd_jax.runtime.workdir import StageFolder

wandb = pytest.importorskip("wandb")
from helpers.wandb_records import history, records, runs


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """W&B reads its environment anew at the first use in a test."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    yield
    wandb.teardown()


def logged(folder, group="runs/emoji", **config):
    log = Log(folder)
    log.trackers.append(WandB(StageFolder(folder), "emoji", group, config))
    return log


def close(log):
    """Returns once all is in W&B's files, too."""
    log.close()
    wandb.teardown()


def test_a_run_has_the_values_by_step_the_config_and_the_group_of_its_workdir(tmp_path):
    log = logged(tmp_path / "diffusion", denoiser={"layers": 3})
    for step in (10, 20):
        log.write(step, {"loss": 1 / step}, "train/")
    close(log)
    (run,) = runs(tmp_path / "diffusion")
    assert [*history(run)] == [
        {"step": 10, "train/loss": 0.1},
        {"step": 20, "train/loss": 0.05},
    ]
    (first, *_) = [r.run for r in records(run) if r.HasField("run")]
    assert (first.project, first.run_group, first.job_type) == ("emoji", "runs/emoji", "diffusion")
    assert first.run_id == (tmp_path / "diffusion" / "wandb-id.txt").read_text()
    config = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert config["denoiser"] == {"layers": 3}
    metrics = [
        (r.metric.glob_name, r.metric.step_metric) for r in records(run) if r.HasField("metric")
    ]
    assert ("*", "step") in metrics


def test_a_resumed_training_continues_the_run(tmp_path):
    for last, resumed in ((30, 0), (40, 20)):
        log = logged(tmp_path)
        log.rewind(resumed)
        for step in range(resumed + 10, last + 1, 10):
            log.write(step, {"x": step + resumed})
        close(log)
    one, two = runs(tmp_path)
    ids = {r.run.run_id for run in (one, two) for r in records(run) if r.HasField("run")}
    assert len(ids) == 1
    lines = [(line["step"], line["x"]) for run in (one, two) for line in history(run)]
    assert lines == [(10, 10), (20, 20), (30, 30), (30, 50), (40, 60)]
    assert [(r["step"], r["x"]) for r in read_metrics(tmp_path)] == [
        (10, 10), (20, 20), (30, 50), (40, 60)
    ]  # fmt: skip


def test_images_are_shown_with_their_step(tmp_path):
    folder = StageFolder(tmp_path)
    for step in (5, 6):
        Image.new("RGB", (4, 3)).save(folder.samples(step))
    log = logged(tmp_path)
    log.write(6, {"psnr": 20}, "held_out/", folder.images_of(6))
    close(log)
    (run,) = runs(tmp_path)
    (line,) = history(run)
    image = line["held_out/samples"]
    assert (image["_type"], image["width"], image["height"]) == ("image-file", 4, 3)
    assert (run / "files" / image["path"]).read_bytes() == folder.samples(6).read_bytes()
    assert read_metrics(tmp_path)[0].keys() - TIMINGS == {"step", "held_out/psnr"}


def test_an_error_is_told_once_and_the_record_goes_on(tmp_path, capsys):
    log = logged(tmp_path)
    log.write(1, {"x": 1})
    log.write(2, {"x": 2}, images={"samples": tmp_path / "absent.png"})
    log.write(3, {"x": 3})
    log.close()
    told = [line for line in capsys.readouterr().out.splitlines() if "Weights & Biases" in line]
    assert len(told) == 1 and told[0].endswith("; training goes on without it")
    assert [row["x"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_long_workdir_has_a_group_that_fits(tmp_path):
    close(logged(tmp_path, group="folder/" * 40 + "emoji"))
    (run,) = runs(tmp_path)
    (first, *_) = [r.run for r in records(run) if r.HasField("run")]
    assert first.run_group.endswith("/folder/emoji") and len(first.run_group) <= 128
    assert first.display_name.endswith("/emoji/" + tmp_path.name)
    assert len(first.display_name) <= 128


def test_a_damaged_id_does_not_end_training(tmp_path, capsys):
    StageFolder(tmp_path).wandb_id.write_bytes(b"\xff:\n#")
    log = logged(tmp_path)
    log.write(1, {"x": 1})
    log.close()
    assert "; training goes on without it" in capsys.readouterr().out
    assert [row["x"] for row in read_metrics(tmp_path)] == [1]


def test_without_a_login_nothing_starts(monkeypatch, tmp_path):
    check_wandb("emoji")  # offline, nobody need be known
    wandb.teardown()
    for name in ("HOME", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(UserError, match="wandb.project needs a login: run `wandb login` or set"):
        check_wandb("emoji")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        check_wandb("emoji")


def test_a_missing_package_and_a_wrong_name_are_told(monkeypatch):
    with pytest.raises(UserError, match="wandb.project: Invalid project name 'a/b'"):
        check_wandb("a/b")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb.project needs wandb, .*\[wandb\]"):
        check_wandb("emoji")


UNREACHABLE = """
import sys
from pathlib import Path
from vqd_jax.runtime.trackers import WandB
from vqd_jax.runtime.workdir import StageFolder
tracker = WandB(StageFolder(Path(sys.argv[1])), "emoji", "run", {})
tracker.write(1, 0.0, {"x": 1.0}, {})
tracker.close()
"""


def test_without_a_network_the_run_is_kept_on_the_disk(monkeypatch, tmp_path):
    """In a process of its own, which has to end."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    line = [sys.executable, "-c", UNREACHABLE, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Weights & Biases: ") == 1 and "; logging offline" in done.stdout
    (run,) = runs(tmp_path)
    assert [*history(run)] == [{"step": 1, "x": 1.0}]
