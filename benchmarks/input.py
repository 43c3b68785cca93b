"""Images per second of the input pipeline alone: reading, decoding, the published random transform
and batching, with threads and with processes.

  python benchmarks/input.py --out=results/input.json

The data set is made here, in the layout of MS-COCO: JPEG files of 640 x 480 pixels, of noise with
the spectrum of photographs (220 kB each; those of COCO have 160). Each row is the loader that
training uses, with `data.threads` and `data.workers` as given; rows take turns in each round.
`single` is what one thread does of each part of the work alone.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import peer
from absl import flags
from PIL import Image

from vqd_jax.core.cores import cores
from vqd_jax.data import batches
from vqd_jax.data.coco import coco
from vqd_jax.data.image_bytes import decode
from vqd_jax.data.transforms import Reference
from vqd_jax.runtime.progress import bar

WIDTH, HEIGHT, QUALITY = 640, 480, 93


class Tokenizer:
    """Lengths of the captions: what a tokenizer does is not measured here."""

    def __call__(self, texts: list[str]) -> np.ndarray:
        return np.array([[len(text)] for text in texts], np.int32)


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG file of noise whose amplitude falls with frequency, as that of photographs does."""
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    fall = 1 / np.maximum(np.hypot(rows, columns), 1 / WIDTH)
    phase = np.exp(2j * np.pi * rng.random((3, *fall.shape)))
    waves = np.fft.irfft2(phase * fall, s=(HEIGHT, WIDTH))
    pixels = np.clip(128 + 45 * waves / waves.std(), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def make_coco(root: Path, count: int) -> float:
    """Writes a data set of `count` images with five captions each; returns their mean size."""
    rng, sizes = np.random.default_rng(0), []
    (root / "annotations").mkdir(parents=True)
    for part, images in (("train2014", count), ("val2014", 1)):
        (root / part).mkdir()
        names = [f"COCO_{part}_{i:012d}.jpg" for i in range(images)]
        for name in names:
            sizes.append((root / part / name).write_bytes(photograph(rng)))
        table = {
            "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": 5 * i + j, "image_id": i, "caption": f"caption {j} of image {i}"}
                for i in range(images)
                for j in range(5)
            ],
        }
        (root / "annotations" / f"captions_{part}.json").write_text(json.dumps(table))
    return statistics.mean(sizes)


def rate(source, threads: int, workers: int, batch: int, seconds: float) -> float:
    """Images per second of the loader, after its first batches."""
    loader = batches.pair_loader(
        source,
        None,
        Reference(size=256),
        Tokenizer(),
        batch_size=batch,
        seed=0,
        threads=threads,
        workers=workers,
    )
    with loader.iterate() as loaded:
        for _ in range(2 + 2 * max(threads, workers)):  # what was loaded ahead is not counted
            next(loaded)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            next(loaded)
            count += batch
        return count / (time.perf_counter() - started)


def single(root: Path, count: int) -> dict[str, float]:
    """Milliseconds for each image of each part of the work, on one thread."""
    files, rng = sorted((root / "train2014").iterdir()), np.random.default_rng(0)
    taken = {"read": 0.0, "decode": 0.0, "transform": 0.0}
    transform = Reference(size=256)
    for i in range(count):
        started = time.perf_counter()
        content = files[i % len(files)].read_bytes()
        read = time.perf_counter()
        pixels = decode(content)
        decoded = time.perf_counter()
        transform(pixels, rng)
        for part, spent in zip(
            taken, (read - started, decoded - read, time.perf_counter() - decoded)
        ):
            taken[part] += 1e3 * spent / count
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/input.json"))
    parser.add_argument("--images", type=int, default=256, help="different images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # Grain asks for it
    counts = sorted({1, 2, max(cores() // 2, 1), cores(), min(2 * cores(), 32)})
    settings = [(n, 0) for n in counts] + [(n, n) for n in counts if n <= cores()]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "coco"
        size = make_coco(root, args.images)
        source, parts = coco(path=str(root)), single(root, 2 * args.images)
        rates = {setting: [] for setting in settings}
        with bar(args.rounds * len(settings), description=f"to {args.out}") as progress:
            for _ in range(args.rounds):
                for threads, workers in settings:
                    rates[threads, workers].append(
                        rate(source, threads, workers, args.batch, args.seconds)
                    )
                    progress.update()
    rows = [
        {"threads": threads, "workers": workers, "images_per_second": peer.spread(values)}
        for (threads, workers), values in rates.items()
    ]
    measured = {
        "bytes_per_image": round(size),
        "batch": args.batch,
        "rounds": args.rounds,
        "single_ms": {part: round(spent, 2) for part, spent in parts.items()},
    }
    peer.write(args.out, "input", [measured, *rows])
    for row in rows:
        print(row)
    print(measured)
    print(args.out)


if __name__ == "__main__":
    main()
