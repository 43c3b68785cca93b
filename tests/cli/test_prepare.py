"""`vqd prepare`, and training on the sets that it prepared."""

import contextlib
import json
import re
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from helpers.captioned_sets import scenes
from helpers.commands import TINY, run, run_in_process
from helpers.emoji_set import emoji_cache
from vqd_jax.cli import runner
from vqd_jax.config import build, sources
from vqd_jax.data.batches import image_loader, pair_loader
from vqd_jax.data.prepared import Prepared
from vqd_jax.runtime.workdir import Workdir

# one step for each stage
SHORT = [
    *TINY,
    *(
        f"{stage}_train.{key}={value}"
        for stage in ("vqvae", "diffusion")
        for key, value in (("examples", 16), ("evaluate_every", 16), ("save_every", 16))
    ),
]


def config(flags):
    """The config of a command line, and its cache folder."""
    with contextlib.chdir(ROOT), mock.patch.object(sys, "argv", ["vqd prepare", *flags]):
        _, options, _ = runner.parse("prepare", flags)
    cache = options.config.data.cache or Workdir(runner.training_workdir(options)).cache
    return options.config, Path(cache)


def own_folder(root):
    """30 images with captions, of which 3 cannot be used."""
    rng = np.random.default_rng(0)
    root.mkdir()
    for n in range(30):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{n:02d}.png")
        (root / f"{n:02d}.txt").write_text(f"picture {n} of a dog\n")
    (root / "03.png").write_bytes(b"")
    (root / "05.txt").unlink()
    (root / "07.txt").write_text("\n \n")
    return root


def coco_flags(tmp_path, count, *flags):
    scenes(tmp_path / "coco", count=count)
    return [
        "--config=configs/emoji.py",
        "--config.data.source=coco",
        f"--config.coco.path={tmp_path / 'coco'}",
        f"--config.data.cache={tmp_path / 'cache'}",
        *flags,
    ]


def folder_flags(tmp_path):
    return [
        "--config=configs/folder.py",
        f"--config.folder.path={own_folder(tmp_path / 'pictures')}",
        "--config.data.image_size=32",
        f"--workdir={tmp_path / 'run'}",
        *(f"--config.{key}" for key in SHORT),
    ]


def destroy(folder):
    """Overwrites images by as many zeros."""
    for image in folder.rglob("*.jpg"):
        image.write_bytes(bytes(image.stat().st_size))


@pytest.mark.parametrize("transform", ["resize", "crop", "reference"])
def test_the_prepared_set_makes_the_same_batches_without_the_originals(tmp_path, transform):
    flags = coco_flags(tmp_path, 4, f"--config.data.transform={transform}")
    c, cache = config(flags)
    transform = build.transform(c, training=True)

    def batches():
        """(a batch of images, a batch of images with captions, the source)."""
        source = sources.source(c, cache)
        options = {"batch_size": 20, "seed": 0}
        tokenizer = build.tokenizer(c, source.records)
        loaders = (
            image_loader(source, transform, **options),
            pair_loader(source, None, transform, tokenizer, **options),
        )
        return *(loader[0] for loader in loaders), source

    images, pairs, _ = batches()
    done = run_in_process("prepare", *flags)
    kind = "files" if build.encodes_online(c) else c.data.image_size
    assert f"prepared 8 images for 40 examples in {cache}/coco-{kind}-" in done.stdout
    assert "left out: 0\n" in done.stdout
    destroy(tmp_path / "coco")
    same_images, same_pairs, source = batches()
    assert isinstance(source, Prepared)
    jax.tree.map(np.testing.assert_array_equal, (same_images, same_pairs), (images, pairs))


@pytest.mark.slow  # two trainings
def test_training_reads_the_prepared_set(tmp_path):
    """The originals are destroyed after preparation. With random crops, images are encoded during
    training, not all before.
    """
    flags = coco_flags(tmp_path, 16, "--config.data.transform=reference")
    run_in_process("prepare", *flags)
    destroy(tmp_path / "coco")
    done = run(
        "vqd_jax.main",
        *flags,
        f"--workdir={tmp_path / 'run'}",
        *(f"--config.{key}" for key in SHORT),
    )
    assert "80 train, 0 held_out_cells, 80 held_out_items" in done.stdout
    tags = set().union(*map(json.loads, (tmp_path / "run/diffusion/metrics.jsonl").open()))
    assert {"held_out/bound_train", "held_out/bound_held_out_items"} <= tags
    assert not list((tmp_path / "cache").glob("tokens-*"))


def test_broken_images_are_listed(tmp_path):
    flags = coco_flags(tmp_path, 50)
    file = tmp_path / "coco/train2014/COCO_train2014_000000000007.jpg"
    file.write_bytes(file.read_bytes()[:99])
    done = run_in_process("prepare", *flags)
    assert "prepared 99 images for 495 examples" in done.stdout
    assert re.search(
        r"left out: 1\n  train2014/COCO_train2014_000000000007.jpg: (?i:.*truncated)", done.stdout
    )
    assert run_in_process("prepare", *flags).stdout == done.stdout  # from the finished set
    (tmp_path / "coco/train2014/COCO_train2014_000000000008.jpg").write_bytes(b"")
    done = run_in_process("prepare", *flags, ok=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: at least 2 (train2014/COCO_train2014_")


def test_a_folder_of_ones_own(tmp_path):
    """Unusable images end training at once, unless the same flags prepared the folder."""
    flags = folder_flags(tmp_path)
    done = run_in_process("train", *flags, ok=False)
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and error.startswith(
        "error: 2 (05.png: it has no caption, 07.png: its caption is empty) of the 30 images"
    )
    assert "or run vqd prepare" in error
    done = run_in_process("prepare", *flags)
    assert (
        f"prepared 27 images for 27 examples in {tmp_path}/run/cache/folder-32-" in done.stdout
        and "left out: 3\n  03.png: it is empty or no image\n  05.png: it has no caption\n  07.png: "
        "its caption is empty\n"
        in done.stdout
    )
    source = sources.source(*config(flags))
    assert isinstance(source, Prepared) and len(source) == 27


@pytest.mark.slow  # two trainings
def test_training_on_a_prepared_folder(tmp_path):
    flags = folder_flags(tmp_path)
    run_in_process("prepare", *flags)
    done = run("vqd_jax.main", *flags)
    assert "3 (05.png, 07.png, 03.png) of the 30 images" in done.stderr
    assert "checking the images" not in done.stderr
    counts = re.search(r"images: (\d+) train, 0 held_out_cells, (\d+) held_out_items", done.stdout)
    assert int(counts[1]) + int(counts[2]) == 27 and (tmp_path / "run/samples.png").exists()


EMOJI, HERE = "--config=configs/emoji.py", "--workdir={tmp}"


@pytest.mark.slow  # 10 s
def test_the_emoji_are_built_as_training_does(tmp_path):
    cache = emoji_cache()
    done = run_in_process(
        "prepare", EMOJI, HERE.format(tmp=tmp_path), f"--config.data.cache={cache}"
    )
    assert f"prepared 900 images in {cache}" in done.stdout


@pytest.mark.parametrize(
    "flags,sentence",
    [
        ([], "--config is missing"),
        (["--config=configs/none.py"], "there is no config file configs/none.py"),
        (
            ["--config=configs/folder.py", "--config.folder.path={tmp}"],
            "none of the 1 images in {tmp} has a caption",
        ),
        (
            [EMOJI, HERE, "--config.data.source=lsun"],
            "data.source must be one of emoji, folder, datasets, cub",
        ),
        ([EMOJI, HERE, "--config.data.source=cub"], "cub.path is not set"),
        (
            [EMOJI, HERE, "--config.data.source=cub", "--config.data.transform=pad"],
            "data.transform must be one of resize, crop, reference",
        ),
        (
            [EMOJI, HERE + "/file", "--config.data.source=ffhq", "--config.ffhq.path={tmp}"],
            "cannot be written to",
        ),
        ([EMOJI, HERE, "--config.data.source=ffhq", "--config.ffhq.pth=x"], "no key 'pth'"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, flags, sentence):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / "file").write_bytes(b"")
    done = run_in_process("prepare", *(flag.format(tmp=tmp_path) for flag in flags), ok=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert last.startswith("error: ") and sentence.format(tmp=tmp_path) in last
    assert "Traceback" not in done.stderr
