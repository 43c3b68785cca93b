"""The command that packs a data set, as a subprocess, and training that reads what it made."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT

TINY = """
    vqvae.channels=8 vqvae.latent_width=8 codebook.codes=32 codebook.width=8 codebook.restart_every=2
    vqvae_train.batch_size=8 vqvae_train.examples=16 vqvae_train.log_every=8 vqvae_train.evaluate_every=16 vqvae_train.save_every=16
    denoiser.layers=1 denoiser.width=16 denoiser.heads=2 learned_text.width=16 learned_text.heads=2 learned_text.layers=1
    learned_text.vocabulary=280 process.T=10 sampling.calls=3 diffusion_train.batch_size=8 diffusion_train.examples=16
    diffusion_train.log_every=8 diffusion_train.evaluate_every=16 diffusion_train.save_every=16 held_out.examples=8
    held_out.draws=1 held_out.lpips=False preview.pictures=2
    """.split()


def run(command, *arguments, status=0):
    environment = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "vqd_jax", command, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def coco(root, pictures=60):
    rng = np.random.default_rng(0)
    for part, count in (("train2014", pictures), ("val2014", 8)):
        images = [{"id": n, "file_name": f"COCO_{part}_{n:012d}.jpg"} for n in range(count)]
        (root / part).mkdir(parents=True)
        for image in images:
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(
                root / part / image["file_name"]
            )
        captions = [
            {"id": 10 * n + k, "image_id": n, "caption": f"Picture {n} of {k} dogs"}
            for n in range(count)
            for k in range(2)
        ]
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"captions_{part}.json").write_text(
            json.dumps({"images": images, "annotations": captions})
        )
    return root


def test_training_reads_the_prepared_set(tmp_path):
    """Only from the pack, for the originals are broken by then; random crops are encoded in
    training, not all beforehand.
    """
    root, cache = coco(tmp_path / "coco", 16), tmp_path / "cache"
    flags = (
        "--config=configs/emoji.py",
        "--config.data.source=coco",
        f"--config.coco.path={root}",
        "--config.data.transform=reference",
    )
    done = run("prepare", *flags, f"--config.data.cache={cache}")
    assert "prepared 24 pictures for 48 examples in " + str(cache / "coco-files-") in done.stdout
    assert "left out 0\n" in done.stdout
    for picture in root.rglob("*.jpg"):
        picture.write_bytes(bytes(picture.stat().st_size))
    done = run(
        "train",
        *flags,
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.cache={cache}",
        *(f"--config.{key}" for key in TINY),
    )
    assert "32 train, 0 held_out_cells, 16 held_out_items" in done.stdout
    tags = set().union(*map(json.loads, (tmp_path / "run/diffusion/metrics.jsonl").open()))
    assert {"held_out/bound_train", "held_out/bound_held_out_items"} <= tags and not list(
        cache.glob("tokens-*")
    )


def test_broken_pictures_are_reported(tmp_path):
    root = coco(tmp_path / "coco", 100)
    file = root / "train2014/COCO_train2014_000000000007.jpg"
    file.write_bytes(file.read_bytes()[:99])
    flags = (
        "--config=configs/emoji.py",
        f"--config.data.cache={tmp_path / 'cache'}",
        "--config.data.source=coco",
        f"--config.coco.path={root}",
    )
    done = run("prepare", *flags)
    assert "prepared 107 pictures for 214 examples" in done.stdout
    assert re.search(
        r"left out 1\n  train2014/COCO_train2014_000000000007.jpg: (?i:.*truncated)", done.stdout
    )
    assert run("prepare", *flags).stdout == done.stdout  # again, from what is there
    (root / "train2014/COCO_train2014_000000000008.jpg").write_bytes(b"")
    error = run("prepare", *flags, status=2).stderr
    assert (
        error.splitlines()[-1].startswith(f"error: Of the 108 images in {root} at least 2 (")
        and "Traceback" not in error
    )


def test_a_folder_of_ones_own(tmp_path):
    """The same flags prepare it and train on it; without preparing, pictures that cannot be used
    end training at once.
    """
    root, rng = tmp_path / "pictures", np.random.default_rng(0)
    root.mkdir()
    for n in range(30):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(
            root / f"{n:02d}.png"
        )
        (root / f"{n:02d}.txt").write_text(f"picture {n} of a dog\n")
    (root / "03.png").write_bytes(b"")
    (root / "05.txt").unlink()
    (root / "07.txt").write_text("\n \n")
    flags = (
        "--config=configs/folder.py",
        f"--config.folder.path={root}",
        "--config.data.image_size=32",
        f"--workdir={tmp_path / 'run'}",
        *(f"--config.{key}" for key in TINY),
    )
    error = run("train", *flags, status=2).stderr.splitlines()[-1]
    assert error.startswith(
        "error: 2 (05.png: it has no caption, 07.png: its caption is empty) of the 30 images"
    )
    assert "or run vqd prepare" in error
    done = run("prepare", *flags)
    assert (
        "prepared 27 pictures for 27 examples in " + str(tmp_path / "run/cache/folder-32-")
        in done.stdout
    )
    assert (
        "left out 3\n  03.png: it is empty or no image\n  05.png: it has no caption\n  07.png: "
        "its caption is empty\n" in done.stdout
    )
    done = run("train", *flags)
    assert (
        "3 (05.png, 07.png, 03.png) of the 30 pictures" in done.stderr
        and "checking the images" not in done.stderr
    )
    counts = re.search(r"images: (\d+) train, 0 held_out_cells, (\d+) held_out_items", done.stdout)
    assert int(counts[1]) + int(counts[2]) == 27 and (tmp_path / "run/samples.png").exists()


@pytest.mark.parametrize(
    "flags,sentence",
    [
        ([], "--config is missing"),
        (["--config=configs/none.py"], "there is no config file configs/none.py"),
        (["--config=configs/emoji.py"], "data.source=emoji needs no preparing"),
        (
            ["--config=configs/folder.py", "--config.folder.path={tmp}"],
            "none of the 1 images in {tmp} has a caption",
        ),
        (
            ["--config=configs/emoji.py", "--workdir={tmp}", "--config.data.source=lsun"],
            "data.source must be one of emoji, folder, cub",
        ),
        (
            ["--config=configs/emoji.py", "--workdir={tmp}", "--config.data.source=cub"],
            "cub.path is not set",
        ),
        (
            [
                "--config=configs/emoji.py",
                "--workdir={tmp}",
                "--config.data.source=cub",
                "--config.data.transform=pad",
            ],
            "data.transform must be one of resize, crop, reference",
        ),
        (
            [
                "--config=configs/emoji.py",
                "--workdir={tmp}/file",
                "--config.data.source=ffhq",
                "--config.ffhq.path={tmp}",
            ],
            "cannot be written to",
        ),
        (
            [
                "--config=configs/emoji.py",
                "--workdir={tmp}",
                "--config.data.source=ffhq",
                "--config.ffhq.pth=x",
            ],
            "no key 'pth'",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, flags, sentence):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / "file").write_bytes(b"")
    error = run("prepare", *(flag.format(tmp=tmp_path) for flag in flags), status=2).stderr
    last = error.splitlines()[-1]
    assert (
        last.startswith("error: ")
        and sentence.format(tmp=tmp_path) in last
        and "Traceback" not in error
    )
