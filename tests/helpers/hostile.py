"""Files of a few hundred bytes to a megabyte that were made to take all time or memory, and a reader
that may have little of both.
"""

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib

from helpers import ROOT

SECONDS, MEMORY = 60, 2**29  # for all files, beyond what the imports take

READ = f"""
import resource, sys
from pathlib import Path
from vqd_jax.core.errors import UserError
from vqd_jax.core.text_files import read_yaml
from vqd_jax.data.official_split import _unpickle_names
from vqd_jax.models.weights.files import flatten, read_tree
from vqd_jax.models.weights.torch_files import read_numpy_pickle

readers = dict(
    numpy=read_numpy_pickle,
    torch=lambda path: flatten(read_tree(path)),
    names=_unpickle_names,
    yaml=read_yaml,
)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + {MEMORY},) * 2)
for reader, path in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        readers[reader](Path(path))
        print("read", flush=True)
    except UserError as error:
        print(error, flush=True)
"""


def read(folder, files):
    """What is said about each of the files, name -> (reader in READ, content), in a process with
    little memory.
    """
    arguments = []
    for number, (reader, content) in enumerate(files.values()):
        (folder / f"{number}").write_bytes(content)
        arguments += [reader, str(folder / f"{number}")]
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ, *arguments],
            cwd=ROOT,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode().splitlines()
        raise AssertionError(f"{list(files)[len(said)]!r} does not end") from error
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(files, done.stdout.splitlines(), strict=True))


# opcodes: q puts the top of the stack into a place of the memo, h gets it, 0 drops it
PROTOCOL = b"\x80\x04"


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def tuples(doublings=100):
    """A tuple of 2^100 parts, which are all the same."""
    return b")q\0" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(doublings))


def many(item, count, before=b""):
    """A list that repeats what some opcodes make."""
    return PROTOCOL + before + b"(" + item * count + b"l."


def storage(key=None, size=b"K\x04", kind="FloatStorage", module="torch"):
    """A storage of four numbers."""
    key = text(b"0") if key is None else key
    return b"(" + text(b"storage") + named(module, kind) + key + text(b"cpu") + size + b"tQ"


def tensor(place=None, shape=b"K\x02\x85", dtype=b"", rebuild="_rebuild_tensor_v2"):
    """A tensor of two of its numbers."""
    call, place = named("torch._utils", rebuild), storage() if place is None else place
    return call + b"(" + place + b"K\x00" + shape + b"K\x01\x85\x89)" + dtype + b"tR"


def zipped(pickled, numbers=bytes(16)):
    """A checkpoint as torch.save writes it, with one storage."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", numbers)
    return file.getvalue()


def legacy(*parts):
    header = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join([*(pickle.dumps(part, 2) for part in header), *parts])


def false_size():
    """An archive whose list of tensors unpacks to a gigabyte and claims 100 bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    file = bytearray(zipped(block * 2**10 + packer.flush()))
    for at in (file.index(b"x/data.pkl") - 22, file.rindex(b"x/data.pkl") - 36):
        struct.pack_into("<H", file, at, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", file, at + 14, 100)
    return bytes(file)


def expanded():
    """Ten thousand tensors that are all the numbers of one storage."""
    size = struct.pack("<i", 100_000)
    place = storage(size=b"J" + size) + b"q\1" + b"J" + size + b"\x85q\2K\1\x85q\3)q\4"
    call = named("torch._utils", "_rebuild_tensor_v2") + b"q\0"
    one = b"".join(text(b"%04d" % i) + b"h\0(h\1K\0h\2h\3\x89h\4tR" for i in range(9999))
    return zipped(PROTOCOL + call + place + b"}(" + one + b"u.", bytes(400_000))


def nested(opening, depth, item=b""):
    """A branch that holds the same branch twice, and so on."""
    out = PROTOCOL + opening + b"q\0"
    for i in range(depth):
        pair = b"".join(item and text(name) + b"h%c" % i or b"h%c" % i for name in (b"a", b"b"))
        out += b"0" + opening + b"q%c(" % (i + 1) + pair + (b"u" if item else b"e")
    return out + b"."


BIG = 400_000
CODEC = named("_codecs", "encode")
# name -> (reader in READ, content, part of the sentence)
PICKLES = {
    "a key": ("numpy", PROTOCOL + b"}" + tuples() + b"Ns.", "a key of the type tuple"),
    "a member": ("numpy", PROTOCOL + b"\x8f(" + tuples() + b"\x90.", "a key of the type tuple"),
    "a frozen member": ("numpy", PROTOCOL + b"(" + tuples() + b"\x91.", "of the type tuple"),
    "a numpy type": (
        "numpy",
        PROTOCOL + named("numpy", "dtype") + tuples() + b"\x85R.",
        "numbers of the type a tuple",
    ),
    "an encoding": ("numpy", PROTOCOL + CODEC + text(b"a") + tuples() + b"\x86R.", "the encoding"),
    "lists": ("numpy", nested(b"]", 60), "entries or 100 levels"),
    "dictionaries": ("numpy", nested(b"}", 60, b"s"), "names of more than"),
    "a list in a list": ("numpy", PROTOCOL + b"]" * BIG + b"a" * (BIG - 1) + b".", "100 levels"),
    "a long number as keys": (
        "numpy",
        PROTOCOL
        + b"\x8b"
        + struct.pack("<i", BIG)
        + b"\x7f" * BIG
        + b"q\0}("
        + b"h\0N" * 200_000
        + b"u.",
        "a key of the type int",
    ),
    "copies of a text": (
        "numpy",
        many(
            b"h\2h\1R", 60_000, CODEC + b"q\0020" + text(b"a" * BIG) + text(b"latin1") + b"\x86q\1"
        ),
        "objects much larger than the file",
    ),
    "sets": ("numpy", many(b"\x8f", 10**6), "objects much larger than the file"),
    "an index of an array": (
        "numpy",
        PROTOCOL
        + named("numpy.core.numeric", "_frombuffer")
        + b"(C\1a"
        + named("numpy", "dtype")
        + text(b"u1")
        + b"K\0K\1\x87RK\1K\1\x86"
        + text(b"C")
        + b"tR]("
        + b"]K\0a" * 100_000
        + b"e]("
        + b"K\0" * 100_000
        + b"e\x86K\0s.",
        "entries of a ndarray",
    ),
    "names of images": (
        "names",
        many(b"h\0", BIG, text(b"a" * 10_000) + b"q\0"),
        "larger than the",
    ),
    "a kind of storage": (
        "torch",
        zipped(PROTOCOL + tuples() + b"(h\x64h\0h\0h\0h\0tQ."),
        "not a plain storage",
    ),
    "a key of a storage": (
        "torch",
        zipped(PROTOCOL + tuples() + b"0" + storage(key=b"h\x64") + b"."),
        "a storage of no type or name",
    ),
    "keys of storages": (
        "torch",
        legacy(PROTOCOL + b"}.", PROTOCOL + b"(" + tuples() + b"l."),
        "a key of the type tuple",
    ),
    "keys in order": (
        "torch",
        zipped(PROTOCOL + named("collections", "OrderedDict") + tuples() + b"N\x86\x85\x85R."),
        "a key of the type tuple",
    ),
    "copies of entries": (
        "torch",
        zipped(
            many(
                b"h\0h\2R0",
                60_000,
                named("collections", "OrderedDict")
                + b"q\0"
                + text(b"a")
                + b"N\x86q\3("
                + b"h\3" * 300_000
                + b"lq\1\x85q\2",
            )
        ),
        "objects much larger than the file",
    ),
    "copies of a shape": (
        "torch",
        zipped(
            many(b"h\0h\2R", 80_000, named("torch", "Size") + b"q\0(" + b"N" * BIG + b"l\x85q\2")
        ),
        "more than 32 axes",
    ),
    "a shape of lists": (
        "torch",
        zipped(PROTOCOL + tensor(shape=b"(\x8a\6\0\0\0\0\0\1](" + b"K\1" * 10 + b"et") + b"."),
        "a shape with a list",
    ),
    "arguments": (
        "torch",
        zipped(
            many(
                b"h\0h\1R", 130_000, named("argparse", "Namespace") + b"q\0(" + b"N" * BIG + b"tq\1"
            )
        ),
        "at most 32 arguments",
    ),
    "the name of a module": (
        "torch",
        zipped(many(b"h\0h\0\x93", 100_000, text(b"argparse." + b"a" * BIG) + b"q\0")),
        "objects much larger than the file",
    ),
    "one storage many times": ("torch", expanded(), "tensors much larger than the file"),
    "an archive": ("torch", false_size(), "or it is damaged (BadZipFile)"),
}

HEADS = """
model:
  params:
    diffusion_config: {params: {transformer_config: {params: {n_head: %s}}}}
"""


def aliases(tag=""):
    lines = [f"a{i}: &a{i} {tag}[*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    return "\n".join([f"a0: &a0 {tag}[x, x]", *lines, ""])


# name -> (content, part of the sentence)
YAMLS = {
    "a key": (aliases("!!python/tuple ") + "? *a39\n: 1" + HEADS % 3, "its aliases stand for"),
    "a value": (aliases() + HEADS % "*a39", "its aliases stand for"),
    "merged": (
        "a0: &a0 {x: 1, y: 2}\n"
        + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))
        + HEADS % 3,
        "its aliases stand for",
    ),
    "a long text": ("a: &a " + "x" * 30_000 + "\nb: [" + "*a," * 10_000 + "]", "its aliases stand"),
    "itself": ("a: &a {b: *a}" + HEADS % "*a", "its aliases stand for"),
    "a chain": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 99)),
        "more than 50 levels",
    ),
    "brackets": ("a: " + "[" * 5_000, "is not YAML"),
    "a number of base 60": (HEADS % ("1" + ":1" * 300_000), "has more than 65,536 bytes"),
}
