"""The best checkpoint: it is kept beside the newest ones, and there is one at every moment."""

import json

import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.runtime import checkpoint
from vqd_jax.runtime.checkpoint import Best, Checkpoints


def best(step, value=0.5):
    return Best(step=step, measure="lpips", value=value)


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, {"config": {"step": step}}, wait=True)


def test_it_is_kept_beside_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 10)
        assert checkpoints.best() is None
        checkpoints.mark_best(best(10, 0.123456789))
        save(checkpoints, 20, 30, 40)
        assert checkpoints.steps() == [10, 30, 40]
        assert checkpoints.best() == best(10, 0.123456789)
        checkpoints.mark_best(best(40, 0.1))
        assert checkpoints.steps() == [30, 40]
        save(checkpoints, 50, 60, 70)
        assert checkpoints.steps() == [40, 60, 70] and checkpoints.restore("config", step=40)
    again = Checkpoints(tmp_path, read_only=True)
    assert again.best() == best(40, 0.1) and again.latest_step() == 70


def test_the_latest_may_be_the_best(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 10)
        checkpoints.mark_best(best(10))
        save(checkpoints, 20)
        checkpoints.mark_best(best(20))
        assert checkpoints.steps() == [20] and checkpoints.best() == best(20)


def test_a_save_that_is_replaced_or_rewound_loses_its_mark(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        save(checkpoints, 10, 20, 30)
        checkpoints.mark_best(best(30))
        save(checkpoints, 30)
        assert checkpoints.best() is None
        checkpoints.mark_best(best(30))
        save(checkpoints, 20)
        assert checkpoints.steps() == [10, 20] and checkpoints.best() is None


def test_after_a_kill_the_old_or_the_new_one_is_the_best(tmp_path, monkeypatch):
    """Killed while the record is written, or after it was and before the step before was removed."""

    class Kill(BaseException):
        pass

    def kill(*_):
        raise Kill

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        save(checkpoints, 10)
        checkpoints.mark_best(best(10))
        save(checkpoints, 20)
    (tmp_path / "20" / ".best.json.7.part").write_text('{"measure"')
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.best() == best(10)
        assert not (tmp_path / "20" / ".best.json.7.part").exists()
        with monkeypatch.context() as patch, pytest.raises(Kill):
            patch.setattr(checkpoint, "_remove", kill)
            checkpoints.mark_best(best(20))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.steps() == [10, 20] and checkpoints.best() == best(20)
        save(checkpoints, 30)
        assert checkpoints.steps() == [20, 30]


def test_which_one_is_chosen(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.choose() is None
        save(checkpoints, 10)
        assert checkpoints.choose() == checkpoints.choose("last") == 10
        with pytest.raises(UserError, match="no best checkpoint in .*take the last"):
            checkpoints.choose("best")
        checkpoints.mark_best(best(10))
        save(checkpoints, 20, 30)
        assert checkpoints.choose() == checkpoints.choose("best") == 10
        assert checkpoints.choose("last") == 30
        assert checkpoints.choose("20") == checkpoints.choose(20) == 20
        for wrong in ("25", "first", 7):
            with pytest.raises(UserError, match=f"no checkpoint {wrong} in .*steps 10, 20, 30$"):
                checkpoints.choose(wrong)
        assert checkpoints.describe(10) == "step 10, the best by lpips (0.5)"
        assert checkpoints.describe(20) == "step 20"
        assert checkpoints.describe(30) == "step 30, the last"


@pytest.mark.parametrize("text", ["", "[1]", json.dumps({"value": 0.1})])
def test_a_damaged_record_is_one_sentence(tmp_path, text):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 10)
        (tmp_path / "10" / "best.json").write_text(text)
        with pytest.raises(UserError, match="10/best.json is damaged .* delete it"):
            checkpoints.best()
