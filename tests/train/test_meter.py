"""What a run says of its speed, by hand on a clock that the test moves; and the traces it writes."""

import gzip
import json
import mmap
import resource
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from vqd_jax.core.checksums import SEAL
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.log import TIMINGS, Log, read_metrics
from vqd_jax.train import meter
from vqd_jax.train.meter import Cost, Meter, memory
from vqd_jax.train.profile import Profile

CPU = Cost(flops=6_000_000, examples=32, devices=1, kind="cpu")
H100 = Cost(flops=10**15, examples=256, devices=8, kind="NVIDIA H100 80GB HBM3")


@pytest.fixture
def clock(monkeypatch):
    """`clock(seconds)` passes them."""
    now = [1_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0] - 999_000)

    def wait(seconds):
        now[0] += seconds
        return now[0]

    return wait


def steps(measured, clock, log, first, last, seconds=2.0, wait=0.0, every=5):
    """Steps of that length, with lines in the log; the last line."""
    rates = None
    for step in range(first + 1, last + 1):
        with measured.waiting():
            clock(wait)
        clock(seconds - wait)
        measured.step()
        if step % every == 0:
            rates = measured.rates(step)
            log.write(step, rates, "train/")
    return rates


def test_rates_by_hand(tmp_path, clock):
    log = Log(tmp_path)
    measured = Meter(H100, log, 0)
    clock(29)  # the first step takes longer: it compiles
    rates = steps(measured, clock, log, 0, 5, wait=0.25)
    del rates["host_memory"]
    assert rates == pytest.approx(
        dict(
            examples_per_second=5 * 256 / 39,
            input_wait=5 * 0.25 / 39,
            step_time=2.0,
            flops_per_second=5e15 / 39,
            mfu=5e15 / 39 / (8 * 989e12),
            goodput=10 / 39,
        )
    )
    clock(61)  # pictures
    measured.pause()
    rates = steps(measured, clock, log, 5, 10, wait=0.5)
    del rates["host_memory"]
    assert rates == pytest.approx(
        dict(
            examples_per_second=128.0,
            input_wait=0.25,
            step_time=2.0,
            flops_per_second=0.5e15,
            mfu=0.5e15 / (8 * 989e12),
            goodput=20 / 110,
        )
    )


def test_a_killed_run_pays_for_what_it_lost(tmp_path, clock):
    """Saved at step 8, killed in step 14, started 100 seconds later; lines every 5 steps."""
    log = Log(tmp_path)
    steps(Meter(CPU, log, 0), clock, log, 0, 13)
    clock(101)
    log.close()
    log = Log(tmp_path)
    log.rewind(8)
    resumed = Meter(CPU, log, 8)
    clock(7)  # compiling
    resumed.pause()
    rates = steps(resumed, clock, log, 8, 10)
    assert rates["goodput"] == pytest.approx(10 * 2 / (13 * 2 + 101 + 7 + 2 * 2))
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 5, 10]
    rates = steps(resumed, clock, log, 10, 20)
    assert rates["goodput"] == pytest.approx(20 * 2 / (13 * 2 + 101 + 7 + 12 * 2))
    log.close()
    assert meter.useful_seconds(read_metrics(tmp_path)) == (pytest.approx(40), 20)


def test_a_run_killed_before_its_first_save_pays_too(tmp_path, clock):
    log = Log(tmp_path)
    steps(Meter(CPU, log, 0), clock, log, 0, 6)
    log.rewind(0)
    rates = steps(Meter(CPU, log, 0), clock, log, 0, 5)
    assert rates["goodput"] == pytest.approx(5 / 11)


def test_a_run_without_loss_or_pause_has_all_of_its_time(tmp_path, clock):
    log = Log(tmp_path)
    assert steps(Meter(CPU, log, 0), clock, log, 0, 20)["goodput"] == pytest.approx(1.0)
    assert steps(Meter(CPU, log, 20), clock, log, 20, 30)["goodput"] == pytest.approx(1.0)


def test_the_step_that_compiles_is_not_taken_for_a_usual_one(tmp_path, clock):
    log = Log(tmp_path)
    measured = Meter(CPU, log, 0)
    clock(94)
    first, second = (steps(measured, clock, log, step, step + 1, every=1) for step in (0, 1))
    assert first["examples_per_second"] == pytest.approx(32 / 96)
    assert "step_time" not in first and second["step_time"] == pytest.approx(2.0)
    assert second["goodput"] == pytest.approx(2 * 2 / 98)


def test_a_log_of_an_older_version_begins_with_its_first_line(tmp_path, clock):
    log = Log(tmp_path)
    log.write(5, {"loss": 1.0, "examples_per_second": 8.0}, "train/")
    clock(10)
    rates = steps(Meter(CPU, log, 5), clock, log, 5, 10)
    assert rates["goodput"] == pytest.approx(10 / 20)


def test_what_is_not_known_is_left_out_and_said(tmp_path, clock):
    log = Log(tmp_path)
    rates = steps(Meter(CPU, log, 0), clock, log, 0, 5)
    assert "mfu" not in rates and "device_memory" not in rates
    assert CPU.text == "6 MFLOP a step, on 1 x cpu (peak unknown: no mfu)"
    assert (
        H100.text
        == "1 PFLOP a step, on 8 x NVIDIA H100 80GB HBM3 (at most 7.91 PFLOP/s in bfloat16)"
    )


def test_memory_of_the_process():
    found = memory()["host_memory"]
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert found == pytest.approx(int(status["VmRSS"].split()[0]) * 1024, rel=0.02)
    assert (
        50e6 < found <= 1.01 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )  # JAX alone is more
    with mmap.mmap(
        -1, 100_000_000
    ) as block:  # from the system: an allocator may have as much left from other tests
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        assert memory()["host_memory"] - found == pytest.approx(len(block), rel=0.2)


def test_memory_of_the_fullest_device(monkeypatch):
    device = lambda now, most: types.SimpleNamespace(
        memory_stats=lambda: {"bytes_in_use": now, "peak_bytes_in_use": most}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device(5, 7), device(6, 9), device(4, 8)])
    assert memory() == {"device_memory": 6, "device_memory_peak": 9}


def test_timings_are_all_that_a_meter_measures(tmp_path, clock, monkeypatch):
    log = Log(tmp_path)
    names = steps(Meter(H100, log, 0), clock, log, 0, 5).keys()
    stats = {"bytes_in_use": 1, "peak_bytes_in_use": 1}
    monkeypatch.setattr(
        jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda: stats)]
    )
    assert TIMINGS == {"time", SEAL, *(f"train/{name}" for name in {*names, *memory()})}


def traced(folder):
    """Numbers of the steps in each trace under the folder."""
    for file in sorted(folder.rglob("*.trace.json.gz")):
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        yield [
            int(e["args"]["step_num"])
            for e in events
            if e.get("name") == "step" and "step_num" in e.get("args", {})
        ]


@pytest.mark.parametrize(
    "steps,last,chosen",
    [(3, 30, [16, 17, 18]), (3, 17, [15, 16, 17]), (30, 7, [6, 7]), (1, 30, [16])],
)
def test_a_trace_of_some_steps_after_the_warm_up(tmp_path, capsys, steps, last, chosen):
    with Profile(steps=steps).tracer(tmp_path / "profile", 5, last) as trace:
        out = [trace(step, jnp.add, step, 1) for step in range(6, last + 1)]
    assert out == [*range(7, last + 2)]
    assert list(traced(tmp_path)) == [chosen]
    said = capsys.readouterr().out
    assert (
        f"trace of steps {chosen[0]} to {chosen[-1]}" in said
        and f"--logdir={tmp_path / 'profile'}" in said
        and "perfetto" in said
    )


def test_a_run_that_ends_within_a_trace_keeps_it_and_can_trace_again(tmp_path, capsys):
    with (
        pytest.raises(KeyboardInterrupt),
        Profile(steps=5).tracer(tmp_path / "one", 0, 30) as trace,
    ):
        for step in range(1, 14):
            trace(step, jnp.add, step, 1)
        raise KeyboardInterrupt
    assert list(traced(tmp_path / "one")) == [[11, 12, 13]]
    assert "trace of steps 11 to 13" in capsys.readouterr().out
    with Profile(steps=1).tracer(tmp_path / "two", 0, 1) as trace:
        trace(1, jnp.add, 1, 1)
    assert list(traced(tmp_path / "two")) == [[1]]


def test_no_trace_unless_asked(tmp_path):
    with Profile(steps=0).tracer(tmp_path / "profile", 0, 30) as trace:
        assert [trace(step, jnp.add, step, 1) for step in range(1, 31)] == [*range(2, 32)]
    assert not (tmp_path / "profile").exists()
    with pytest.raises(
        UserError, match="profile.steps must be 0 for none or the number of steps to trace, got -1"
    ):
        Profile(steps=-1)
