"""What may change when a run is resumed: every key of the config, the batch size, the data."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.toy_training import contents, example, train
from vqd_jax.config.defaults import defaults
from vqd_jax.core.errors import UserError
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.train import resume
from vqd_jax.train.resume import changes, check_restart, check_same_model

KEYS = [
    f"{section}.{key}" if isinstance(values, dict) else section
    for section, values in defaults().to_dict().items()
    for key in (values if isinstance(values, dict) else [""])
]
KEYS = [key.rstrip(".") for key in KEYS]


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return value + "x" if isinstance(value, str) else (*value, "x")


def changed(key):
    """The default config with another value of one key."""
    config = defaults()
    section, _, name = key.partition(".")
    with config.ignore_type():
        if name:
            config[section][name] = other(config[section][name])
        else:
            config[section] = other(config[section])
    return config


class Stored(Checkpoints):
    """The checkpoints of a run with the default config, in memory."""

    items = {
        "config": json.loads(defaults().to_json()),
        "data": {"fingerprint": "f"},
        "record": {},
    }

    def __init__(self):
        self.folder = Path("runs/emoji/vqvae/checkpoints")

    def has(self, name):
        return name in self.items

    def restore(self, name):
        return self.items[name]


@pytest.fixture
def stored():
    return Stored()


def outcome(stage, checkpoints, config, capsys, allowed=False, fingerprint="f"):
    """model or examples: refused as another model, or as other examples; or what is printed."""
    try:
        check_same_model(stage, checkpoints, config)
    except UserError:
        return "model"
    try:
        check_restart(stage, checkpoints, config, fingerprint, allowed)
    except UserError:
        return "examples"
    return capsys.readouterr().out


def test_every_key_is_refused_or_printed_when_it_changes(stored, capsys, monkeypatch):
    before = resume.complete(stored.restore("config"))
    monkeypatch.setattr(resume, "complete", lambda config: before)  # once is enough
    for key in KEYS:
        config, results = changed(key), []
        now = config.to_dict()
        for part in key.split("."):
            now = now[part]
        now = [*now] if isinstance(now, tuple) else now
        for stage in ("vqvae", "diffusion"):
            results.append(outcome(stage, stored, config, capsys))
            if results[-1] == "examples":
                assert key in outcome(stage, stored, config, capsys, allowed=True)
            elif results[-1] not in ("model", ""):
                assert results[-1].startswith(f"{stage}: {key} was "), key
                assert results[-1].endswith(f"is {now!r} now\n"), key
                assert results[-1].count("\n") == 1, key
        assert any(results), f"a change of {key} is not noticed by any stage"


def test_what_is_refused(stored, capsys):
    result = lambda key, stage="diffusion": outcome(stage, stored, changed(key), capsys)
    for key in ("seed", "data.transform", "data.drop_words", "emoji.held_out_cells",
                "emoji.wording", "crop.flip", "mixture.pairs"):  # fmt: skip
        assert result(key) == result(key, "vqvae") == "examples"
    for key in ("denoiser.width", "process.T", "codebook.codes", "data.image_size"):
        assert result(key) == "model"
    assert result("codebook.codes", "vqvae") == "model" and result("process.T", "vqvae") == ""
    # files may move, and other sources have no effect
    config = defaults()
    config.folder.path = "/elsewhere"
    assert "folder.path was '' so far" in outcome("vqvae", stored, config, capsys)


def test_the_sentence_says_what_differs_and_what_can_be_done(stored):
    with pytest.raises(
        UserError,
        match=r"has seen other examples than this one would: seed is 0 there and 1 here; choose "
        "another --workdir, or go on nevertheless with --allow_changes",
    ):
        check_restart("vqvae", stored, changed("seed"), "f", False)
    with pytest.raises(UserError, match="would: images or captions have changed; choose"):
        check_restart("vqvae", stored, defaults(), "g", False)
    check_restart("vqvae", stored, defaults(), "g", True)


def test_converted_weights_have_seen_no_examples(stored, monkeypatch, capsys):
    monkeypatch.delitem(stored.items, "record")
    for key in ("seed", "data.source", "vqvae_optim.muon"):
        assert outcome("vqvae", stored, changed(key), capsys, fingerprint="g") == ""


def test_without_changes_nothing_is_printed(stored, capsys):
    assert changes(stored, defaults()) == {} and outcome("vqvae", stored, defaults(), capsys) == ""


def total(count):
    """The sum of the first examples of the toy training."""
    return pytest.approx(sum(float(example(i, {})["x"]) for i in range(count)), rel=1e-6)


@pytest.mark.parametrize("size", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_with_another_batch_size_a_run_goes_on_from_the_examples_it_has_seen(
    tmp_path, size, capsys
):
    settings = dict(log_every=1, evaluate_every=1000, save_every=6, examples=24)
    train(tmp_path, batch_size=2, **settings)
    step, state, *_ = contents(tmp_path)
    assert step == 12 and state["extra"]["seen"] == total(24)
    capsys.readouterr()

    settings["examples"] = 48
    train(tmp_path, batch_size=size, **settings)
    step, state, record, lines = contents(tmp_path)
    assert step == 12 + 24 // size
    assert state["extra"]["seen"] == total(48)  # each once
    assert [line["train/examples"] for line in lines if "train/examples" in line][-1] == 48
    assert record["pace"] == {"batch_size": size, "step": 12, "examples": 24, "position": 24}
    printed = capsys.readouterr().out
    assert f"12 of {step} steps of {size} done (24 of 48 examples seen), on" in printed


def test_a_run_with_a_changed_batch_size_resumes_bit_for_bit(tmp_path):
    settings = dict(log_every=1, evaluate_every=1000, save_every=6)
    for name, lengths in (("whole", [60]), ("parts", [36, 48, 60])):
        train(tmp_path / name, batch_size=2, examples=24, **settings)
        for length in lengths:
            train(tmp_path / name, batch_size=4, examples=length, **settings)
    (step, state, record, _), (again, other, its, _) = (
        contents(tmp_path / name) for name in ("whole", "parts")
    )
    assert step == again == 12 + 9 and record["pace"] == its["pace"]
    np.testing.assert_array_equal(state["params"]["mean"], other["params"]["mean"])


def test_a_longer_or_shorter_run_says_what_is_left(tmp_path, capsys):
    settings = dict(log_every=1, evaluate_every=1000, save_every=6, batch_size=2)
    train(tmp_path, examples=24, **settings)
    train(tmp_path, examples=16, **settings)  # shorter than what is done
    assert contents(tmp_path)[0] == 12
    train(tmp_path, examples=30, **settings)
    assert contents(tmp_path)[0] == 15 and "12 of 15 steps of 2 done, on" in capsys.readouterr().out
