"""Pickles that were made to harm: nothing is looked up or altered, and time and memory are in
proportion to the file.
"""

import io
import itertools
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from helpers import hostile
from helpers.torch_pickles import Storage, save
from vqd_jax.core.errors import UserError
from vqd_jax.core.safe_pickle import Unpickler
from vqd_jax.models.weights import torch_files, torch_stubs
from vqd_jax.models.weights.torch_files import read_numpy_pickle, read_torch

GLOBAL = b"c%s\n%s\n"
DTYPE = GLOBAL % (b"numpy", b"dtype")
ARRAY = (
    GLOBAL % (b"numpy.core.multiarray", b"_reconstruct") + b"(" + GLOBAL % (b"numpy", b"ndarray")
)
TREES = [
    None,
    True,
    3,
    2**70,
    2.5,
    "text",
    b"bytes",
    bytearray(b"array"),
    [1, [2]],
    (1, (), "x"),
    {"a": {1: 2}},
    {1, 2},
    frozenset([3]),
]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_comes_back(protocol):
    if protocol < 3:  # which need a global for the rest
        trees = [
            tree for tree in TREES if not isinstance(tree, bytes | bytearray | set | frozenset)
        ]
    else:
        trees = [tree for tree in TREES if protocol > 4 or not isinstance(tree, bytearray)]
        trees = [tree for tree in trees if protocol > 3 or not isinstance(tree, set | frozenset)]
    for tree in [*trees, trees]:
        assert Unpickler(io.BytesIO(pickle.dumps(tree, protocol=protocol))).load() == tree


def test_one_pickle_after_another_is_read():
    file = io.BytesIO(b"".join(pickle.dumps(tree, protocol=2) for tree in ("one", [2])) + b"rest")
    assert [Unpickler(file).load(), Unpickler(file).load(), file.read()] == ["one", [2], b"rest"]


@pytest.mark.parametrize(
    "content,found",
    [
        (GLOBAL % (b"os", b"system") + b"(S'true'\ntR.", "the global os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "the global builtins.eval"),
        (b"(i__main__\nTest\n.", "the global __main__.Test"),
        (b"]}b.", "a state of a list"),
    ],
)
def test_nothing_is_looked_up_or_altered(content, found):
    with pytest.raises(pickle.UnpicklingError, match=found):
        Unpickler(io.BytesIO(content)).load()


CLAIMS = {
    "the place of an object": b"\x80\x02Nr\xf0\xff\xff\xff.",
    "a place in text": b"Np4000000000\n.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40),
    "an array of bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**33),
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40),
    "a number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1),
    "a frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40),
    "a shape": ARRAY + b"(I99999999999\ntS'b'\ntR.",
    "a shape and a state": ARRAY
    + b"(I0\ntS'b'\ntR(I1\n(I99999999999\nt"
    + DTYPE
    + b"(S'f8'\nI0\nI1\ntRI00\nS'abc'\ntb.",
}


@pytest.fixture
def little_memory():
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_size_that_is_only_claimed_takes_no_memory(tmp_path, little_memory, claim):
    (tmp_path / "w").write_bytes(CLAIMS[claim])
    try:
        tree = read_numpy_pickle(tmp_path / "w")
    except UserError:
        return
    assert (
        tree is None or np.size(tree) == 1
    )  # an object may have any place; an array without its state is none


def test_lists_in_lists_in_lists_are_not_written_out(tmp_path, little_memory, monkeypatch):
    monkeypatch.setattr(torch_files, "_ENTRIES", 10_000)
    tree = [1]
    for _ in range(60):
        tree = [tree, tree]
    ring = []
    ring.append(ring)
    for name, content in (("doubled", tree), ("ring", ring)):
        (tmp_path / name).write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="more than 10,000 entries or 100 levels"):
            read_numpy_pickle(tmp_path / name)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    files = {name: content for name, (*content, _) in hostile.PICKLES.items()}
    return hostile.read(tmp_path_factory.mktemp("hostile"), files)


@pytest.mark.parametrize("name", hostile.PICKLES)
def test_no_pickle_takes_all_time_or_memory(said, name):
    assert hostile.PICKLES[name][2] in said[name]


@pytest.mark.parametrize("key", [b"N", b"\x88", b"K\1", b"G" + bytes(8), b"C\1a", b"\x8c\1a"])
def test_numbers_and_texts_are_keys(key):
    for content in (b"}" + key + b"Ns.", b"(" + key + b"Nd.", b"\x8f(" + key + b"\x90."):
        assert len(Unpickler(io.BytesIO(b"\x80\x04" + content)).load()) == 1


@pytest.mark.parametrize(
    "content,found",
    [
        (b")R.", "IndexError"),
        (b"N)R.", "TypeError"),
        (b"N)\x81.", "an object of a NoneType"),
        (b")N)\x92.", "an operation that plain data do not need"),
        (b"(I1\no.", "an operation that plain data do not need"),
        (b"\x97.", "an operation that plain data do not need"),
        (b"C\1a\x98.", "an operation that plain data do not need"),
        (b"\x82\1.", "an extension of the pickle format"),
        (b"NNNs.", "entries of a NoneType"),
        (b"}Na.", "entries of a dict"),
        (b"](N\x90.", "entries of a list"),
    ],
)
def test_operations_are_refused(tmp_path, content, found):
    (tmp_path / "w").write_bytes(b"\x80\x05" + content)
    with pytest.raises(UserError, match=found):
        read_numpy_pickle(tmp_path / "w")


def test_a_name_in_a_file_neither_breaks_a_message_nor_fills_it(tmp_path):
    (tmp_path / "w").write_bytes(GLOBAL % (b"a\x1b[31m\xe2\x80\xae" + b"b" * 9999, b"c" * 9999))
    with pytest.raises(UserError, match=r"the global a\\x1b\[31m\\u202eb+\.c+\)") as caught:
        read_numpy_pickle(tmp_path / "w")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    "shape,strides", [((10**6, 10**6), (0, 0)), ((2, 4), (0, 1)), ((5,), (0,))]
)
def test_a_tensor_has_no_more_numbers_than_its_storage(
    tmp_path, little_memory, legacy, shape, strides
):
    storage = Storage("FloatStorage", np.zeros(4, np.float32))
    save(tmp_path / "w", legacy, lambda tensor: {"x": tensor(storage, 0, shape, strides)})
    with pytest.raises(UserError, match="a tensor larger than its storage"):
        read_torch(tmp_path / "w")


def test_a_storage_of_the_old_format_is_not_longer_than_the_file(tmp_path, little_memory):
    storage = Storage("FloatStorage", np.zeros(77, np.float32))
    save(tmp_path / "w", True, lambda tensor: {"x": tensor(storage, 0, (77,), (1,))})
    content = (tmp_path / "w").read_bytes()
    content = content.replace(b"cpuq", b"cpuq").replace(
        b"K\x4d", b"\x8a\x05" + (2**38).to_bytes(5, "little")
    )
    content = content.replace(struct.pack("<q", 77), struct.pack("<q", 2**38))
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(UserError, match="is not a torch checkpoint of tensors, or it is damaged"):
        read_torch(tmp_path / "w")


def test_a_small_archive_does_not_unpack_to_a_large_one(tmp_path, little_memory):
    with zipfile.ZipFile(tmp_path / "w", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        with archive.open("x/data/0", "w") as part:
            for _ in range(100):
                part.write(bytes(2**20))
    with pytest.raises(UserError, match="parts much larger than the file"):
        read_torch(tmp_path / "w")


@pytest.mark.parametrize(
    "content,found",
    [
        (DTYPE + b"(S'V8'\nI0\nI1\ntR.", "numbers of the type 'V8'"),
        (DTYPE + b"(S'O'\nI0\nI1\ntR.", "numbers of the type 'O'"),
        (DTYPE + b"(]tR.", "numbers of the type a list"),
        (DTYPE + b"}b.", "a state of a type"),
        (
            GLOBAL % (b"_codecs", b"encode") + b"N}S'__defaults__'\nNs\x86b.",
            "a state of a function",
        ),
    ],
)
def test_a_pickle_of_arrays_alters_nothing_of_ours(tmp_path, content, found):
    before = [
        {name: value for name, value in vars(thing).items()}
        for thing in vars(torch_stubs).values()
        if hasattr(thing, "__dict__")
    ]
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(UserError, match=found):
        read_numpy_pickle(tmp_path / "w")
    after = [
        {name: value for name, value in vars(thing).items()}
        for thing in vars(torch_stubs).values()
        if hasattr(thing, "__dict__")
    ]
    assert all(list(a) == list(b) for a, b in itertools.zip_longest(before, after))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "|u1", "<i8", "|b1", "<c8", "<f2", "<U3", "|S2"])
def test_arrays_of_every_kind_come_back(tmp_path, protocol, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    tree = [array, array.T, array[:, 1], array[0, 1], array[:0], np.array(array[1, 1])]
    (tmp_path / "w").write_bytes(pickle.dumps(tree, protocol=protocol))
    for got, want in zip(read_numpy_pickle(tmp_path / "w"), tree, strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype and got.shape == want.shape
