"""Sets that `datasets` reads equal their images and captions, survive interruptions, and are read
once: local parquet files, webdataset shards, folders, and a set of the hub.
"""

import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from unittest import mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from helpers import ROOT
from helpers.commands import run_in_process
from helpers.hub_server import hub
from vqd_jax.config import sources
from vqd_jax.config.defaults import defaults
from vqd_jax.core.errors import UserError
from vqd_jax.core.text_files import shown
from vqd_jax.data import captioned_datasets, splits
from vqd_jax.data.captioned_datasets import CaptionedDatasets
from vqd_jax.data.dataset_stream import Selection
from vqd_jax.data.image_bytes import decode
from vqd_jax.data.source import Source
from vqd_jax.data.transforms import Resize

SIZE = (12, 10)  # width, height


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Small shards, no hub, and a cache of `datasets` that has to stay empty."""
    monkeypatch.setattr(captioned_datasets, "SHARD_SIZE", 4)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield
    assert not [*(tmp_path / "arrow").rglob("*.arrow")]


def image(n, kind="PNG"):
    """The bytes of an image of noise."""
    pixels = np.random.default_rng(n).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), kind)
    return file.getvalue()


CONTENTS = [image(n, "PNG" if n % 2 else "JPEG") for n in range(10)]


def parquet(root, contents=CONTENTS, captions=None, files=2, **columns):
    """A folder of parquet files with an `Image` column as `datasets` writes them."""
    root.mkdir(parents=True, exist_ok=True)
    rows = {
        "image": [{"bytes": content, "path": None} for content in contents],
        "text": captions or [f"number {n}" for n in range(len(contents))],
    }
    features = {"image": datasets.Image(), "text": datasets.Value("string")}
    table = datasets.Dataset.from_dict(
        rows | {name: values for name, (values, _) in columns.items()},
        features=datasets.Features(features | {name: kind for name, (_, kind) in columns.items()}),
    )
    for part in range(files):
        file = root / f"train-{part:05d}-of-{files:05d}.parquet"
        pq.write_table(table.shard(files, part).data.table, file, row_group_size=3)
    return str(root)


def shard(file, rows):
    """A webdataset shard; rows are {ending: content}."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for n, row in enumerate(rows):
            for ending, content in row.items():
                info = tarfile.TarInfo(f"{n:05d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(file)


def source(path, cache, size=None, **options):
    return CaptionedDatasets(Selection(path=str(path), **options), cache=str(cache), size=size)


def captions(source):
    return {record.item: record.captions for record in source.records}


def same(one, other):
    assert one.records == other.records and one.fingerprint == other.fingerprint
    assert one.skipped == other.skipped
    for i in range(len(one)):
        np.testing.assert_array_equal(one[i]["image"], other[i]["image"])


def changes(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_parquet_files_with_images(tmp_path):
    made = source(parquet(tmp_path / "set"), tmp_path / "cache")
    assert isinstance(made, Source) and len(made) == 10 and made.skipped == {}
    assert captions(made) == {f"row{n}": (f"number {n}",) for n in range(10)}
    for n, content in enumerate(CONTENTS):
        np.testing.assert_array_equal(made[n]["image"], decode(content))
        assert made[n]["item"] == f"row{n}" and made[n]["label"] == -1
    again = pickle.loads(pickle.dumps(made))  # as for the processes of the loader
    same(made, again)


def test_they_are_packed_as_squares(tmp_path):
    made = source(parquet(tmp_path / "set"), tmp_path / "cache", size=6)
    for n, content in enumerate(CONTENTS):
        np.testing.assert_array_equal(made[n]["image"], Resize(size=6)(decode(content)))


@pytest.mark.parametrize("files", ["", "*.tar", "a/*.tar"])
def test_webdataset_shards(tmp_path, files):
    for part in range(2):
        rows = [
            {"png": CONTENTS[5 * part + n], "txt": f"shard {part}, {n}".encode()} for n in range(5)
        ]
        shard(tmp_path / "set" / "a" / f"{part}.tar", rows)
    where = tmp_path / "set" / "a" if files == "*.tar" else tmp_path / "set"
    made = source(where, tmp_path / "cache", files=files)
    assert [*captions(made).values()] == [(f"shard {n // 5}, {n % 5}",) for n in range(10)]
    np.testing.assert_array_equal(made[7]["image"], decode(CONTENTS[7]))


def test_one_shard_with_captions_in_json(tmp_path):
    rows = [
        {"jpg": CONTENTS[n], "json": json.dumps({"caption": f"no. {n}", "n": n}).encode()}
        for n in (0, 2, 4)
    ]
    made = source(shard(tmp_path / "x.tar", rows), tmp_path / "cache")
    assert [*captions(made).values()] == [("no. 0",), ("no. 2",), ("no. 4",)]
    np.testing.assert_array_equal(made[2]["image"], decode(CONTENTS[4]))


def test_a_plain_table_with_lists_of_captions(tmp_path):
    fields = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": content, "path": "x"} for content in CONTENTS[:3]], fields)
    texts = [["a", "b"], ["c"], ["d", None, "d"]]
    pq.write_table(pa.table({"pic": pictures, "captions": texts}), tmp_path / "x.parquet")
    made = source(tmp_path / "x.parquet", tmp_path / "cache")
    assert [*captions(made).values()] == [("a", "b"), ("c",), ("d",)]
    np.testing.assert_array_equal(made[1]["image"], decode(CONTENTS[1]))


def test_a_folder_of_images_is_read_too(tmp_path, monkeypatch):
    """A file that cannot be read, as without a network, ends that; it is not left out."""
    (tmp_path / "set").mkdir()
    for n in range(3):
        (tmp_path / f"set/{n}.png").write_bytes(image(n))
    rows = [json.dumps({"file_name": f"{n}.png", "text": f"no. {n}"}) for n in range(3)]
    (tmp_path / "set/metadata.jsonl").write_text("\n".join(rows))
    with monkeypatch.context() as patched, pytest.raises(UserError, match="0.png cannot be read"):
        patched.setattr("fsspec.open", mock.Mock(side_effect=OSError("no network")))
        source(tmp_path / "set", tmp_path / "cache")
    made = source(tmp_path / "set", tmp_path / "cache")
    assert [*captions(made).values()] == [("no. 0",), ("no. 1",), ("no. 2",)]
    np.testing.assert_array_equal(made[2]["image"], decode(image(2)))


def test_classes_are_labels(tmp_path):
    kind = datasets.ClassLabel(names=["cat", "dog", "cow"])
    path = parquet(tmp_path / "set", kind=([0, 2, 1, None, 1, 1, 2, 2, 0, 0], kind))
    made = source(path, tmp_path / "cache", condition="class")
    assert [record.label for record in made.records] == [0, 2, 1, 1, 1, 2, 2, 0, 0]
    assert made.records[1].captions == ("cow",) and made[1]["label"] == 2
    assert made.skipped == {"row3": "it has no class"}
    assert len(source(path, tmp_path / "cache", condition="none")) == 10


def test_the_fingerprint_is_of_the_content(tmp_path):
    cache, path = tmp_path / "cache", parquet(tmp_path / "set")
    first = source(path, cache)
    shutil.copytree(path, tmp_path / "moved")
    before = changes(cache)
    same(first, source(tmp_path / "moved", cache))
    assert changes(cache) == before  # it is not read again
    assert source(path, tmp_path / "other", size=6).fingerprint == first.fingerprint
    fewer_files = parquet(tmp_path / "one", files=1)
    assert source(fewer_files, cache).fingerprint == first.fingerprint
    others = [
        parquet(tmp_path / "image", [*CONTENTS[:-1], image(99)]),
        parquet(tmp_path / "text", captions=["another", *(f"number {n}" for n in range(1, 10))]),
        parquet(tmp_path / "order", CONTENTS[::-1]),
    ]
    found = {source(other, cache).fingerprint for other in others} | {first.fingerprint}
    assert len(found) == 4


def test_an_image_is_in_one_split(tmp_path):
    """Also where it has a row for each caption, and wherever its row is."""
    path = parquet(tmp_path / "set", CONTENTS + CONTENTS[::-1])
    made = source(path, tmp_path / "cache", held_out_items=0.5)
    split = [record.split for record in made.records]
    assert split[:10] == split[10:][::-1] and {*split} == {splits.TRAIN, splits.ITEMS}
    before = changes(tmp_path / "cache")
    made = source(path, tmp_path / "cache", held_out_items=0.0)
    assert {record.split for record in made.records} == {splits.TRAIN}
    assert changes(tmp_path / "cache") == before


def test_unusable_rows_are_left_out_with_the_reason(tmp_path, caplog):
    texts = [f"number {n}" for n in range(10)]
    texts[4], texts[9] = " ", None
    path = parquet(tmp_path / "set", [CONTENTS[0], b"no image", *CONTENTS[2:]], texts, files=1)
    table = pq.read_table(file := next((tmp_path / "set").iterdir()))
    rows = table["image"].to_pylist()
    rows[6], rows[8] = None, {"bytes": None, "path": str(tmp_path / "secret.png")}
    (tmp_path / "secret.png").write_bytes(CONTENTS[8])
    values = pa.array(rows, table.schema.field("image").type)
    pq.write_table(table.set_column(0, table.schema.field("image"), values), file)
    with caplog.at_level(logging.WARNING):
        made = source(path, tmp_path / "cache")
    assert [*captions(made)] == ["row0", "row2", "row3", "row5", "row7"]
    np.testing.assert_array_equal(made[3]["image"], decode(CONTENTS[5]))
    assert made.skipped == {
        "row1": "it is empty or no image",
        "row4": "it has no caption",
        "row6": "it has no image",
        "row8": f"the data set does not contain its image {shown(f'{tmp_path}/secret.png')}",
        "row9": "it has no caption",
    }
    assert "5 (row1: it is empty or no image, row4: it has no caption, row6:" in caplog.text
    same(made, source(path, tmp_path / "cache"))


@pytest.mark.parametrize("usable, rows", [(1, 3), (0, 10)])
def test_too_many_unusable_rows_are_one_sentence(tmp_path, usable, rows):
    """At the end, or as soon as most of the first shard cannot be used."""
    texts = ["number" if n < usable else "" for n in range(rows)]
    path = parquet(tmp_path / "set", CONTENTS[:rows], texts)
    with pytest.raises(
        UserError,
        match=rf"^{3 - usable} \(row{usable}: it has no caption, .*\) of the first 3 rows of \S* "
        "cannot be used; at most 50% are left out",
    ):
        source(path, tmp_path / "cache")


@pytest.mark.parametrize("rows", [3, 5, 7, 8, 9, 13])
def test_an_interrupted_reading_goes_on(tmp_path, monkeypatch, rows):
    """The shards that are finished stay, and the others are those of an undisturbed reading."""
    texts = [f"number {n}" for n in range(14)]
    texts[3], texts[8], texts[13] = "", "", ""  # at the ends of shards
    contents = [image(n) for n in range(14)]
    if rows % 2:
        path = parquet(tmp_path / "set", contents, texts, files=3)
    else:
        parts = [{"png": content, "txt": text.encode()} for content, text in zip(contents, texts)]
        shard(tmp_path / "set/0.tar", parts[:6])
        path = str(tmp_path / "set")
        shard(tmp_path / "set/1.tar", parts[6:])
    whole = source(path, tmp_path / "whole")
    read, real = [], Selection.rows
    at_once = lambda function, items: ((item, function(item)) for item in items)
    monkeypatch.setattr(captioned_datasets, "prefetch", at_once)

    def failing(self, stream, start):
        for row in real(self, stream, start):
            if row[0] == rows:
                raise UserError("the cable was pulled")
            yield row

    def counted(self, stream, start):
        for row in real(self, stream, start):
            read.append(row[0])
            yield row

    monkeypatch.setattr(Selection, "rows", failing)
    with pytest.raises(UserError, match="the cable"):
        source(path, tmp_path / "cache")
    finished = [*(tmp_path / "cache").glob("*/part*/1.0.0")]
    before = {file: when for part in finished for file, when in changes(part).items()}
    monkeypatch.setattr(Selection, "rows", counted)
    same(whole, source(path, tmp_path / "cache"))
    assert {file: file.stat().st_mtime_ns for file in before} == before
    kept = [n for n in range(14) if texts[n]]
    assert read == [*range(kept[4 * len(finished) - 1] + 1 if finished else 0, 14)]
    assert len(finished) == sum(rows > kept[following] for following in (4, 8))


def test_a_complete_set_needs_no_library(tmp_path, monkeypatch):
    path = parquet(tmp_path / "set")
    made = source(path, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "datasets", None)
    same(made, source(path, tmp_path / "cache"))
    with pytest.raises(
        UserError,
        match=r'data.source=datasets needs datasets, .* pip install "vqd_jax\[datasets\]"',
    ):
        source(path, tmp_path / "other")


def damaged(root, file, content):
    root.mkdir()
    (root / file).write_bytes(content)
    return root


def truncated(root, more=0):
    """A shard that ends where an image begins, or some bytes later."""
    file = shard(root / "x.tar", [{"png": content, "txt": b"x"} for content in CONTENTS])
    with tarfile.open(file) as tar:
        end = tar.getmember("00007.png").offset_data + more
    os.truncate(file, end)
    return root


def flipped(root):
    """A parquet file with a changed byte in the pages of its images."""
    file = next(iter(os.scandir(parquet(root, files=1)))).path
    content = bytearray(open(file, "rb").read())
    content[8:40] = bytes(32)
    open(file, "wb").write(content)
    return root


def nothing(root):
    root.mkdir()
    return root


BAD = [
    (lambda root: "", {}, "datasets.path is not set, pass --config.datasets.path=PATH: a data"),
    (lambda root: root, {}, r"there is no file or folder \S*/set: a data set is OWNER/NAME on the"),
    (nothing, {}, "there are no files in .*: a data set is OWNER/NAME on the Hugging Face hub, or"),
    (parquet, {"files": "*.tar"}, r"there are no files named \*.tar in "),
    (lambda root: f"{parquet(root)}/train-00000-of-00002.parquet", {"files": "x"}, "is a file"),
    (parquet, {"split": "test"}, "has no split test, only train: set datasets.split"),
    (parquet, {"name": "large"}, r"cannot be read \(ValueError: BuilderConfig 'large' not found"),
    (
        parquet,
        {"caption": "txet"},
        r"no column txet of captions: .* image \(Image\), text \(string",
    ),
    (parquet, {"image": "text"}, "has no column text of images: set datasets.image to one of"),
    (lambda root: damaged(root, "x.csv", b"a,b\n1,2\n"), {}, "its columns have no types"),
    (lambda root: damaged(root, "x.parquet", b"PAR1 no"), {}, r"read \(Failed .*/set/x.parquet' w"),
    (
        lambda root: damaged(root, "x.parquet", CONTENTS[0]),
        {},
        r"read \(Failed .*/set/x.parquet' w",
    ),
    (flipped, {}, r"the data set \S*/set cannot be read( behind row \d)? \("),
    (lambda root: damaged(root, "x.tar", b"no tar" * 99), {}, r"cannot be read \(ReadError: "),
    (truncated, {}, r"cannot be read behind row 6 \(ReadError: unexpected end of data"),
    (
        lambda root: truncated(root, more=-99),  # within a header
        {},
        r"^1 \(x.tar\) of the shards in \S*/set are incomplete: the size of a .tar file is a mult",
    ),
    (lambda root: damaged(root, "notes.md", b"# Notes"), {}, r"\): a data set is OWNER/NAME"),
    (lambda root: "someone/pictures", {}, "the data set someone/pictures cannot be read .*offline"),
]


@pytest.mark.parametrize("make, options, message", BAD, ids=range(len(BAD)))
def test_what_cannot_be_read_is_one_sentence(tmp_path, capsys, make, options, message):
    """And nothing else is printed."""
    with pytest.raises(UserError, match=message) as caught:
        source(make(tmp_path / "set"), tmp_path / "cache", **options)
    assert "\n" not in str(caught.value)
    assert not [line for line in capsys.readouterr().err.splitlines() if "image/s" not in line]
    assert not [*(tmp_path / "cache").glob("*/*/1.0.0")]


def test_it_is_a_source_of_the_config(tmp_path):
    config = defaults()
    config.data.source, config.data.image_size = "datasets", 8
    config.datasets.path, config.datasets.held_out_items = parquet(tmp_path / "set"), 0.5
    for transform, shape in (("resize", (8, 8, 3)), ("crop", (*SIZE[::-1], 3))):
        config.data.transform = transform
        made = sources.source(config, tmp_path / "cache")
        assert made[3]["image"].shape == shape
        assert {record.split for record in made.records} == {splits.TRAIN, splits.ITEMS}


def test_prepare(tmp_path):
    done = run_in_process(
        "prepare",
        f"--config={ROOT}/configs/folder.py",
        "--config.data.source=datasets",
        f"--config.datasets.path={parquet(tmp_path / 'set', [b'', *CONTENTS])}",
        f"--config.data.cache={tmp_path / 'cache'}",
    )
    assert f"prepared 10 images in {tmp_path / 'cache'}" in done.stdout


SCRIPT = """
import sys
from vqd_jax.core.errors import UserError
from vqd_jax.data.captioned_datasets import CaptionedDatasets
from vqd_jax.data.dataset_stream import Selection
for wanted in sys.argv[2:]:
    path, _, files = wanted.partition(":")
    try:
        made = CaptionedDatasets(Selection(path=path, files=files), cache=sys.argv[1])
        print(len(made), made.fingerprint, made[1]["image"].sum(), *made.records[1].captions)
    except UserError as error:
        print(error)
"""


def test_a_set_of_the_hub_is_read_once(tmp_path):
    """Afterwards the hub is not needed. Its images may be in tables, or files of their own."""

    def read(*wanted):
        """What the script prints; the client reads these settings when it is imported."""
        settings = {
            "HF_ENDPOINT": server.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, tmp_path / "cache", *wanted],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | settings,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    parquet(tmp_path / "set")
    rows = [json.dumps({"file_name": f"{n}.png", "text": f"no. {n}"}) for n in range(2)]
    with hub() as server:
        server.repositories["someone/tables"] = {
            file.name: file.read_bytes() for file in (tmp_path / "set").iterdir()
        }
        server.repositories["someone/images"] = {
            "metadata.jsonl": "\n".join(rows).encode(),
            **{f"{n}.png": image(n) for n in range(2)},
        }
        tables, some, images, missing = read(
            "someone/tables", "someone/tables:train-00001-*", "someone/images", "someone/nothing"
        )
    local = source(tmp_path / "set", tmp_path / "local")
    assert tables == f"10 {local.fingerprint} {decode(CONTENTS[1]).sum()} number 1"
    assert some.startswith("5 ") and some.endswith(f" {decode(CONTENTS[6]).sum()} number 6")
    assert images.startswith("2 ") and images.endswith(f" {decode(image(1)).sum()} no. 1")
    assert "set someone/nothing cannot be read (RepositoryNotFoundError: 404" in missing
    assert read("someone/tables") == [tables]
