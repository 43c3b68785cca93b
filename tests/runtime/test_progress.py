"""On a terminal one line redraws itself; in a file there are whole lines, and few."""

import io

import pytest

from vqd_jax.runtime import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(monkeypatch, stream, seconds_per_line=10.0):
    monkeypatch.setattr(progress.sys, "stderr", stream)
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", seconds_per_line)
    with progress.bar(100, initial=40, description="codec", unit="step") as bar:
        for i in range(60):
            bar.update(loss=1 / (i + 1))
    return stream.getvalue()


def test_a_file_gets_lines(monkeypatch):
    text = run(monkeypatch, io.StringIO())
    lines = text.splitlines()
    assert 1 <= len(lines) <= 3 and "\r" not in text and text.endswith("\n")
    assert lines[0].startswith("codec: 40/100 step [") and lines[-1].startswith(
        "codec: 100/100 step ["
    )
    assert "loss=0.01667" in lines[-1] and "step/s" in lines[-1]


def test_lines_come_as_time_passes(monkeypatch):
    lines = run(monkeypatch, io.StringIO(), seconds_per_line=0.0).splitlines()
    assert len(lines) >= 60 and all(line.startswith("codec: ") for line in lines)


def test_a_terminal_gets_a_bar(monkeypatch):
    text = run(monkeypatch, Terminal())
    assert "\r" in text and text.count("\n") == 1 and "100%" in text and "loss=0.01667" in text


def test_values_are_numbers(monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    with progress.bar(2) as bar, pytest.raises(ValueError):
        bar.update(loss="low")
