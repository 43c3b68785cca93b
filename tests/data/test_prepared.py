"""Prepared sets equal the image files, name broken images, and survive kills."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from vqd_jax.config import build, sources
from vqd_jax.config.defaults import defaults
from vqd_jax.core.checksums import CHECKSUMS
from vqd_jax.core.errors import UserError
from vqd_jax.data import prepared
from vqd_jax.data.ffhq import ffhq
from vqd_jax.data.loader import Loader
from vqd_jax.data.prepared import Prepared
from vqd_jax.data.source import Source
from vqd_jax.data.transforms import Reference, Resize

RNG = np.random.default_rng(0)


def faces(root, count=10, size=(40, 30), first=59_995):
    """Noise, as PNG files (the first five) and JPEG files."""
    for n in range(count):
        path = root / "00" / f"{first + n:05d}.{'png' if n < 5 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return str(root)


def same(one, other, transform=lambda image: image):
    assert one.records == other.records and len(one) == len(other)
    for i in range(len(one)):
        a, b = one[i], other[i]
        np.testing.assert_array_equal(transform(a.pop("image")), b.pop("image"))
        assert a == b


def contents(folder):
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepared, "SHARD_SIZE", 4)


def test_a_set_of_original_files_equals_them(tmp_path):
    source = ffhq(path=faces(tmp_path / "faces"))
    made = prepared.prepare(str(tmp_path / "cache"), source, None)
    assert (
        isinstance(made, Source) and made.skipped == {} and made.fingerprint == source.fingerprint
    )
    assert sorted(p.name for p in made.root.iterdir() if p.is_dir()) == [
        "part0000",
        "part0001",
        "part0002",
    ]
    same(source, made)
    for i, j in ((9, 0), (4, 4), (6, 2)):  # any order
        np.testing.assert_array_equal(made[i]["image"], source[i]["image"])
        np.testing.assert_array_equal(
            Reference(size=16)(made[j]["image"], np.random.default_rng(i)),
            Reference(size=16)(source[j]["image"], np.random.default_rng(i)),
        )


def test_a_set_of_squares_equals_the_transform(tmp_path):
    source, resize = ffhq(path=faces(tmp_path / "faces")), Resize(size=16)
    made = prepared.prepare(str(tmp_path / "cache"), source, 16)
    same(source, made, resize)
    assert all((resize(made[i]["image"]) == made[i]["image"]).all() for i in range(10)) and made[0][
        "image"
    ].shape == (16, 16, 3)
    assert made.fingerprint == source.fingerprint  # so that tokens stay what they are


def test_only_the_complete_set_of_the_same_source_is_read(tmp_path):
    cache, path = str(tmp_path / "cache"), faces(tmp_path / "faces")
    source = ffhq(path=path)
    assert prepared.open_prepared(cache, source, 16) is source
    root = prepared.prepare(cache, source, 16).root
    assert isinstance(prepared.open_prepared(cache, source, 16), Prepared)
    assert (
        prepared.open_prepared(cache, source, None) is source
        and prepared.open_prepared(cache, source, 32) is source
    )
    (root / "part0001" / "1.0.0").rename(tmp_path / "part")
    assert prepared.open_prepared(cache, source, 16) is source
    (tmp_path / "part").rename(root / "part0001" / "1.0.0")
    same(prepared.open_prepared(cache, source, 16), prepared.prepare(cache, source, 16))
    Image.new("RGB", (90, 90)).save(tmp_path / "faces/00/59996.png")
    changed = ffhq(path=path)
    assert prepared.open_prepared(cache, changed, 16) is changed


def test_a_second_run_writes_nothing(tmp_path):
    source = ffhq(path=faces(tmp_path / "faces"))
    root = prepared.prepare(str(tmp_path / "cache"), source, None).root
    before = contents(root)
    prepared.prepare(str(tmp_path / "cache"), source, None)
    assert contents(root) == before


def test_an_image_of_several_records_is_stored_once(tmp_path):
    source = ffhq(path=faces(tmp_path / "faces", 6))
    source.records, source.files = source.records * 2, source.files * 2
    made = prepared.prepare(str(tmp_path / "cache"), source, None)
    assert len(made) == 12 and made._starts[-1] == 6
    same(source, made)


def test_broken_images_are_left_out_and_named(tmp_path, caplog):
    source = ffhq(path=faces(tmp_path / "faces", 100, (6, 6), 0))
    broken = tmp_path / "faces/00/00041.jpg"
    broken.write_bytes(broken.read_bytes()[:150])
    source = ffhq(path=str(tmp_path / "faces"))
    made = prepared.prepare(str(tmp_path / "cache"), source, None)
    assert (
        list(made.skipped) == ["00/00041.jpg"]
        and len(made) == 99
        and made.fingerprint != source.fingerprint
    )
    kept = [i for i in range(100) if i != 41]
    assert made.records == [source.records[i] for i in kept]
    for i in (0, 40, 41, 98):
        np.testing.assert_array_equal(made[i]["image"], source[kept[i]]["image"])
    assert not caplog.records
    again = prepared.open_prepared(str(tmp_path / "cache"), source, None)
    assert again.skipped == made.skipped and again.fingerprint == made.fingerprint
    assert "1 (00/00041.jpg) of the 100 images in" in caplog.text


def test_too_many_broken_images_are_an_error(tmp_path):
    path = faces(tmp_path / "faces", 100, (6, 6), 0)
    for n in (3, 77):
        (tmp_path / "faces/00" / f"{n:05d}.{'png' if n < 5 else 'jpg'}").write_bytes(b"")
    source = ffhq(path=path)
    with pytest.raises(
        UserError,
        match=r"at least 2 \(00/00003.png, 00/00077.jpg\) of the 100 images in \S*/faces cannot "
        r"be decoded",
    ) as e:
        prepared.prepare(str(tmp_path / "cache"), source, 8)
    assert "\n" not in str(e.value)
    assert prepared.open_prepared(str(tmp_path / "cache"), source, 8) is source


def test_a_damaged_set_is_noticed(tmp_path):
    source = ffhq(path=faces(tmp_path / "faces"))
    root = prepared.prepare(str(tmp_path / "cache"), source, None).root
    file = next((root / "part0001").rglob("*.array_record*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        UserError,
        match=r"the prepared data set in \S*part0001/1.0.0 is damaged .* delete that folder",
    ):
        made = prepared.open_prepared(str(tmp_path / "cache"), source, None)
        [made[i] for i in range(len(made))]


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "notes.json"])
@pytest.mark.parametrize("damage", ["flip", "gone", "[]", "null", '{"a": [1]}', "\ud800"])
def test_a_damaged_description_of_a_set_is_noticed(prepared_faces, tmp_path, name, damage):
    """Any bit by its checksum; in sets of earlier versions, which have none, what is no longer read
    as it was written.
    """
    source, cache = prepared_faces
    shutil.copytree(cache, tmp_path / "cache")
    file = next((tmp_path / "cache").rglob(f"part0001/*/{name}"))
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    elif damage == "gone":
        file.unlink()
    else:
        (file.parent / CHECKSUMS).unlink()
        file.write_bytes(damage.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match="the prepared data set in .* is damaged") as caught:
        prepared.open_prepared(str(tmp_path / "cache"), source, None)
    assert damage != "flip" or f"{name} has changed since it was written" in str(caught.value)


@pytest.fixture(scope="module")
def prepared_faces(tmp_path_factory):
    """(source, cache) of a prepared set."""
    folder = tmp_path_factory.mktemp("prepared")
    source = ffhq(path=faces(folder / "faces"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prepared, "SHARD_SIZE", 4)
        prepared.prepare(str(folder / "cache"), source, None)
    return source, folder / "cache"


def test_training_names_a_broken_file(tmp_path):
    """The error crosses the threads of the loader."""
    faces(tmp_path / "faces")
    (tmp_path / "faces/00/59996.png").write_bytes(b"")
    source = ffhq(path=str(tmp_path / "faces"))
    loader = Loader(
        range(len(source)), load=lambda i, rng: {"image": source[i]["image"]}, batch_size=10, seed=0
    )
    with pytest.raises(UserError, match="the image 00/59996.png in .* cannot be decoded"):
        with loader.iterate() as batches:
            next(batches)


def test_build_reads_the_set_of_its_transform(tmp_path):
    c = defaults()
    c.data.source, c.ffhq.path, c.data.image_size = "ffhq", faces(tmp_path / "faces"), 16
    cache = tmp_path / "cache"
    for transform, size, shape in (
        ("resize", 16, (16, 16, 3)),
        ("crop", None, (30, 40, 3)),
        ("reference", None, (30, 40, 3)),
    ):
        c.data.transform = transform
        assert sources.prepared_size(c) == size and build.encodes_online(c) == (size is None)
        before = sources.source(c, cache)
        prepared.prepare(str(cache), sources.raw_source(c, cache), size)
        after = sources.source(c, cache)
        assert isinstance(after, Prepared) and (
            isinstance(before, Prepared) == (transform == "reference")
        )  # crop made the same
        assert after[3]["image"].shape == shape
        for training in (True, False):
            make = build.transform(c, training=training)
            draw = lambda source: make(
                source[3]["image"], np.random.default_rng(1) if training else None
            )
            np.testing.assert_array_equal(draw(before), draw(after))


def own(root, count=12):
    """A config of a folder of captioned images, uncompressed so that all files are equally large."""
    root.mkdir()
    for n in range(count):
        Image.fromarray(RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(
            root / f"{n:02d}.bmp"
        )
        (root / f"{n:02d}.txt").write_text(f"picture {n}")
    c = defaults()
    c.data.source, c.folder.path, c.data.image_size = "folder", str(root), 16
    return c


def paint(root):
    file = root / "04.bmp"
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=times)


def another(root):
    shutil.copy(root / "04.bmp", root / "new.bmp")
    (root / "new.txt").write_text("another one")


@pytest.mark.parametrize(
    "change",
    [
        paint,
        another,
        lambda root: (root / "04.txt").write_text("picture five"),
        lambda root: (root / "04.bmp").unlink(),
        lambda root: (
            (root / "04.bmp").rename(root / "x.bmp") and (root / "04.txt").rename(root / "x.txt")
        ),
    ],
    ids=["bytes", "more", "caption", "fewer", "name"],
)
def test_a_change_of_a_prepared_folder_is_not_missed(tmp_path, caplog, change):
    c, cache = own(tmp_path / "pictures"), tmp_path / "cache"
    before = sources.source(c, cache)
    made = prepared.prepare(str(cache), sources.raw_source(c, cache), 16)
    read = sources.source(c, cache)
    assert (
        isinstance(read, Prepared)
        and read.fingerprint == made.fingerprint == before.fingerprint
        and not caplog.records
    )
    same(before, read, Resize(size=16))
    change(tmp_path / "pictures")
    after = sources.source(c, cache)
    assert not isinstance(after, Prepared) and after.fingerprint != before.fingerprint
    assert "run vqd prepare again" in caplog.text and len(caplog.records) == 1
    prepared.prepare(str(cache), sources.raw_source(c, cache), 16)
    assert isinstance(sources.source(c, cache), Prepared)
    same(after, sources.source(c, cache), Resize(size=16))


def test_half_of_a_folder_may_be_left_out_with_the_reasons(tmp_path):
    c, cache = own(tmp_path / "pictures"), str(tmp_path / "cache")
    whole = sources.source(c, Path(cache))
    for n in (0, 4, 5, 6, 11):
        (tmp_path / "pictures" / f"{n:02d}.bmp").write_bytes(b"BM" if n else b"")
    (tmp_path / "pictures/01.txt").write_text(" ")
    (tmp_path / "pictures/02.txt").unlink()
    made = prepared.prepare(cache, sources.raw_source(c, Path(cache)), None)
    assert (
        made.skipped.keys() == {f"{n:02d}.bmp" for n in (0, 1, 2, 4, 5, 6, 11)}
        and made.num_images == len(made) == 5
    )
    assert [made.skipped[f"{n:02d}.bmp"] for n in (0, 1, 2)] == [
        "it is empty or no image",
        "its caption is empty",
        "it has no caption",
    ]
    assert made.records == [whole.records[n] for n in (3, 7, 8, 9, 10)]
    for i, n in enumerate((3, 7, 8, 9, 10)):
        np.testing.assert_array_equal(made[i]["image"], whole[n]["image"])
    (tmp_path / "pictures/08.bmp").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"at least 6 .* of the 10 images in \S*/pictures .* at most 50% are left out",
    ):
        prepared.prepare(cache, sources.raw_source(c, Path(cache)), None)


PREPARING = """
import sys, time
from vqd_jax.data import image_files, prepared
from vqd_jax.data.ffhq import ffhq
prepared.SHARD_SIZE = 4
decoded = image_files.ImageFiles.decoded
def slow(self, file):
    time.sleep(float(sys.argv[3]))
    return decoded(self, file)
image_files.ImageFiles.decoded = slow
made = prepared.prepare(sys.argv[2], ffhq(path=sys.argv[1]), None)
print(len(made), [made[i]["item"] for i in range(len(made))] == [r.item for r in made.records])
"""


def test_a_killed_run_resumes_with_the_unfinished_shard(tmp_path):
    path, cache = faces(tmp_path / "faces", 12), tmp_path / "cache"

    def start(pause):
        return subprocess.Popen(
            [sys.executable, "-c", PREPARING, path, str(cache), pause],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    first = start("0.7")
    deadline = time.time() + 120
    while (
        not list(cache.glob("*/part0001/partial/*"))
        and first.poll() is None
        and time.time() < deadline
    ):
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = next(cache.glob("*/part0000/1.0.0"))
    assert not list(cache.glob("*/part0002/1.0.0"))
    before = contents(done)
    source = ffhq(path=path)
    assert prepared.open_prepared(str(cache), source, None) is source
    out, err = start("0").communicate(timeout=120)
    assert out.strip() == "12 True", err
    assert contents(done) == before and not list(cache.glob("*/*/partial"))
    same(source, prepared.open_prepared(str(cache), source, None))
