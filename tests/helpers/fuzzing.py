"""Mutated files, and the promises of every reader; for the tests whose names start with
test_fuzz.
"""

import contextlib
import os
import signal
import sys
import tracemalloc

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from helpers import ROOT
from vqd_jax.core.errors import UserError

LONG = int(os.environ.get("VQD_FUZZ", 0))
MEMORY = 2**25  # bytes beyond what was there, for files of a few kilobytes
HANG = 60  # seconds
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.remove",
    "subprocess.Popen",
    "socket.connect",
)

watched = {"armed": False, "events": []}


def audit(event, arguments):
    if watched["armed"] and (event in FORBIDDEN or event == "open"):
        watched["events"].append((event, arguments[0]))


sys.addaudithook(audit)


def fuzz(examples):
    """Runs `examples` mutations, a few seconds, or VQD_FUZZ of them."""
    return settings(
        max_examples=LONG or examples,
        deadline=None,
        derandomize=not LONG,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def only_user_errors(root=None):
    """Allows a result or a UserError of one line, within HANG seconds, without running programs. Given
    a root, files are opened only below it and in the Python installation.
    """

    def hang(*_):
        raise TimeoutError(f"more than {HANG} seconds")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG)
    watched.update(armed=True, events=[])
    try:
        yield
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 3000
    finally:
        watched["armed"] = False
        signal.alarm(0)
    assert not [
        (event, path)
        for event, path in watched["events"]
        if event != "open" and not (event == "os.remove" and os.fsdecode(path).endswith(".part"))
    ]  # an atomic write removes its own temporary
    paths = [
        os.fsdecode(path)
        for event, path in watched["events"]
        if event == "open" and isinstance(path, (str, bytes))
    ]
    assert not root or not [
        p for p in paths if not p.startswith((str(root), sys.prefix, sys.base_prefix, str(ROOT)))
    ]


@contextlib.contextmanager
def little_memory():
    """Allows MEMORY bytes, whatever size the files claim."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "insert", "cut", "repeat", "end", "number"]),
        st.integers(0, 2**20),
        st.integers(0, 2**32 - 1),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=4,
)
NUMBERS = [
    n.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for order in ("little", "big")
    for n in (
        0,
        1,
        2 ** (8 * size - 1) - 1,
        2 ** (8 * size - 1),
        2 ** (8 * size) - 1,
        2 ** (4 * size),
    )
]


def mutated(content, edits):
    out = bytearray(content)
    for kind, where, amount, piece in edits:
        i = where % (len(out) + 1)
        if kind == "set":
            out[i : i + len(piece)] = piece
        elif kind == "flip" and i < len(out):
            out[i] ^= 1 << amount % 8
        elif kind == "insert":
            out[i:i] = piece
        elif kind == "cut":
            del out[i : i + amount % 40]
        elif kind == "repeat":
            out[i:i] = out[i : i + amount % 40] * (1 + amount % 3)
        elif kind == "end":
            del out[i:]
        elif kind == "number":
            out[i : i + len(number)] = (number := NUMBERS[amount % len(NUMBERS)])
    return bytes(out)


WRONG = (None, True, -1, 0, 2**70, 0.5, float("nan"), "x", "\ud800", "../x", [], [1], {}, [[]] * 3)


def with_a_wrong_value(tree):
    """Yields the tree with each of its values and branches replaced by each WRONG one in turn."""
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            for other in [*with_a_wrong_value(tree[key]), *WRONG]:
                changed = tree.copy()
                changed[key] = other
                yield changed
