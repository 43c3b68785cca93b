"""The history of a run, through kills and resumes, in the file and as TensorBoard reads it."""

import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from vqd_jax.core.checksums import unsealed
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.log import Log, read_metrics


def events(folder):
    """Every event, from the framing of TFRecord: length, its checksum, data, its checksum."""
    for file in sorted((folder / "tensorboard").iterdir(), key=lambda f: f.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_lines_are_on_disk_at_once(tmp_path):
    log = Log(tmp_path / "run")
    log.write(10, {"loss": jnp.float32(0.5), "rate": np.float64(2)}, prefix="train/")
    log.write(20, {"psnr": 21})
    first, second = map(unsealed, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert abs(first.pop("time") - second.pop("time")) < 60
    assert first == {"step": 10, "train/loss": 0.5, "train/rate": 2.0}
    assert second == {"step": 20, "psnr": 21.0}
    log.close()


def test_tensorboard_has_the_scalars(tmp_path):
    log = Log(tmp_path)
    log.write(3, {"loss": 0.25}, prefix="eval/")
    log.close()
    values = [(e.step, v) for e in events(tmp_path) for v in e.summary.value]
    assert [(s, v.tag, v.simple_value) for s, v in values] == [(3, "eval/loss", 0.25)]


def test_numbers_that_json_lacks(tmp_path):
    log = Log(tmp_path)
    log.write(1, {"loss": math.nan, "other": math.inf})
    log.close()
    refuse = lambda name: pytest.fail(f"{name} is not JSON")
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])
    Log(tmp_path).close()
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])


def test_another_digit_is_damage(tmp_path, capsys):
    """It would be a wrong point of a curve; lines of earlier versions have no checksum."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 0.625}\n')
    log = Log(tmp_path)
    log.write(2, {"loss": 0.5}, "train/")
    log.write(3, {"loss": 0.25}, "train/")
    log.close()
    damaged = path.read_text().replace("0.5", "0.7")
    path.write_text(damaged)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]
    Log(tmp_path).close()
    assert "1 of the 3 lines" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == damaged
    assert [row["train/loss"] for row in read_metrics(tmp_path)] == [0.625, 0.25]


def test_every_flipped_bit_of_the_last_line_is_told_or_harmless(tmp_path, caplog):
    log = Log(tmp_path)
    for step in (1, 2):
        log.write(step, {"x": step})
    log.close()
    file = tmp_path / "metrics.jsonl"
    whole, rows = file.read_bytes(), read_metrics(tmp_path)
    for place in range(whole.index(b"\n") + 1, len(whole)):
        for bit in range(8):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            caplog.clear()
            assert read_metrics(tmp_path) == rows or str(file) in caplog.text


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_cut_line_is_dropped_and_writing_goes_on(tmp_path, cut, caplog):
    log = Log(tmp_path)
    for step in (1, 2):
        log.write(step, {"x": step})
    log.close()
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    left = [1, 2] if cut == 1 else [1]  # only the line break is gone
    assert [r["step"] for r in read_metrics(tmp_path)] == left
    assert (f"the last line of {file} is incomplete" in caplog.text) == (cut > 1)
    log = Log(tmp_path)
    log.write(3, {"x": 3})
    log.close()
    assert [(r["step"], r["x"]) for r in read_metrics(file)] == [(s, s) for s in [*left, 3]]


def test_a_resumed_run_has_one_history(tmp_path):
    log = Log(tmp_path)
    for step in (1, 2, 3, 4):
        log.write(step, {"x": step})
    log.close()
    log = Log(tmp_path)
    log.rewind(2)
    log.write(3, {"x": 30})
    log.close()
    assert [(r["step"], r["x"]) for r in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
    seen = []
    for e in events(tmp_path):
        if e.session_log.status == SessionLog.START:
            seen = [s for s in seen if s[0] < e.step]
        seen += [(e.step, v.simple_value) for v in e.summary.value]
    assert seen == [(1, 1), (2, 2), (3, 30)]


def test_rewinding_an_open_log_to_the_start(tmp_path):
    log = Log(tmp_path)
    log.write(1, {"x": 1})
    log.rewind(0)
    assert read_metrics(tmp_path) == []
    log.write(1, {"x": 2})
    log.close()
    assert [r["x"] for r in read_metrics(tmp_path)] == [2]


def test_the_machine_is_described_beside_the_metrics(tmp_path):
    log = Log(tmp_path / "run")
    for devices in (1, 2):
        log.write_machine({"devices": devices, "name": "é"})
    written = (tmp_path / "run" / "machine.json").read_text()
    assert unsealed(written) == {"devices": 2, "name": "é"}
    assert not [*(tmp_path / "run").glob(".*")] and read_metrics(tmp_path / "run") == []
    (tmp_path / "run" / "machine.json").unlink()
    (tmp_path / "run" / "machine.json").mkdir()
    with pytest.raises(UserError, match="cannot write a log to .*run/machine.json"):
        log.write_machine({})
    log.close()


def test_bad_files_are_told(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\nnonsense\n{}\n")
    with pytest.raises(UserError, match="metrics.jsonl has no line of metrics"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match="cannot read metrics from .*absent"):
        read_metrics(tmp_path / "absent")
    with pytest.raises(UserError, match="cannot write a log to .*metrics.jsonl"):
        Log(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    "line",
    ['{"step" 2}', "nonsense", '{"step": "2"}', '{"step": 2, "loss": "0.5"}', "[2]", "[" * 9999],
)
def test_damaged_lines_are_set_aside_and_the_run_goes_on(tmp_path, line, capsys, caplog):
    path = tmp_path / "metrics.jsonl"
    damaged = f'{{"step": 1, "loss": 0.5}}\n{line}\n{{"step": 3}}\n'
    path.write_text(damaged)
    assert [row["step"] for row in read_metrics(path)] == [1, 3]
    assert f"1 of the 3 lines of {path} are damaged" in caplog.text
    log = Log(tmp_path)
    log.write(4, {"loss": 0.25})
    log.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 3, 4]
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == damaged
    said = f"1 of the 3 lines of {path} are damaged: they are left out, and the file is now {path}"
    assert said in capsys.readouterr().out
    Log(tmp_path).close()
    assert capsys.readouterr().out == ""
