"""Curves, images, codebook use, plans and evaluations of a workdir as JSON values for the page.

Missing files give an empty list or None, damaged ones a UserError. A workdir may be another's:
files are read as far as they are regular, and pictures as PNG only. Long curves and series of
images are thinned evenly to keep the page small.
"""

import base64
import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vqd_jax.core.checksums import array_from, unsealed
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import read_regular
from vqd_jax.data.batches import spread
from vqd_jax.data.image_bytes import LARGEST, reason
from vqd_jax.inference import loading, plan
from vqd_jax.runtime.log import PREFIX, TIMINGS, read_metrics
from vqd_jax.runtime.workdir import STAGES, Workdir
from vqd_jax.web.report.run_info import stored_config

MAX_POINTS = 2_000  # of a curve
MAX_IMAGES = 40  # of a series
MAX_COUNTS = 400_000  # of all steps of the codebook use together
PNG_BYTES = 128 * 1024  # larger images become JPEGs
JPEG_WIDTH = 1_200  # pixels, at most
MAX_FILE = 256 * 2**20  # bytes; larger files are not read
CALLS = (4, 8, 16, 32, 64)  # of plans, besides the number in the config
MAX_PLANNED = 1_024  # tokens; plans for more take too long to compute here


def curves(workdir: Path) -> list[dict[str, Any]]:
    """Stages -> panels -> lines of metrics.jsonl; `timing` panels measure the machine."""
    out = []
    timings = {name.removeprefix(PREFIX) for name in TIMINGS}
    for folder in Workdir(workdir).logged_stages():
        panels = []
        for name, lines in _panels(read_metrics(folder.path)).items():
            kept = [
                {
                    "name": line,
                    "steps": _thin(np.array([step for step, _ in points], int)),
                    "values": _thin(np.array([value for _, value in points], float)),
                    "of": len(points),
                }
                for line, points in lines.items()
                if line != "fault" and name != "examples"
            ]
            if kept:
                panels.append({"name": name, "timing": name in timings, "lines": kept})
        if panels:
            out.append(
                {
                    "stage": "" if folder.path == Workdir(workdir).path else folder.name,
                    "panels": sorted(
                        panels, key=lambda panel: (panel["timing"], panel["name"] != "loss")
                    ),
                }
            )
    return out


def _panels(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Panel -> line -> (step, value), without values that are not finite: "train/loss" is the line
    "train" of the panel "loss".
    """
    out: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("step", "time") and np.isfinite(value):
                line, _, name = key.rpartition("/")
                out.setdefault(name, {}).setdefault(line, []).append((row["step"], value))
    return out


def images(workdir: Path, faults: list[str]) -> list[dict[str, Any]]:
    """The series of images that training writes (STAGE/KIND-STEP.png) as data URIs. What is wrong
    with those that cannot be shown is added to `faults`.
    """
    found = [
        (folder.name, kind, files)
        for folder in Workdir(workdir).logged_stages()
        for kind, files in folder.images().items()
    ]
    out = []
    for stage, kind, files in found:
        shown = [
            (step, uri) for step, path in _spread(files, MAX_IMAGES) if (uri := image(path, faults))
        ]
        if shown:
            out.append(
                {
                    "stage": stage,
                    "kind": kind,
                    "steps": [step for step, _ in shown],
                    "images": [uri for _, uri in shown],
                }
            )
    return out


def final_images(workdir: Path, faults: list[str]) -> list[tuple[str, str]]:
    """(stage, samples at the end of training as a data URI)."""
    files = [(stage, Workdir(workdir).samples(stage)) for stage in STAGES[1:]]
    return [(stage, uri) for stage, path in files if (uri := image(path, faults))]


def image(path: Path, faults: list[str]) -> str | None:
    """A PNG file as a data URI, reduced if it is large; None if it is missing, or cannot be shown
    for a reason that is added to `faults`.
    """
    try:
        stat = path.stat()
        return _data_uri(path, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError:
        return None
    except UserError as error:
        faults.append(str(error))
        return None


@functools.lru_cache(maxsize=4 * MAX_IMAGES)
def _data_uri(path: Path, size: int, changed: int) -> str:
    content, kind = read_regular(path, MAX_FILE), "png"
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width:,} x {image.height:,} pixels are too many")
            pixels = image.convert("RGB")  # reads all of them
    except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
        raise UserError(f"{path} is no PNG picture that can be shown ({reason(error)})") from error
    if size > PNG_BYTES:
        pixels.thumbnail((JPEG_WIDTH, JPEG_WIDTH * 2))
        pixels.save(file := io.BytesIO(), "JPEG", quality=85)
        content, kind = file.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def codes(workdir: Path) -> dict[str, Any] | None:
    """Steps, and how often each code was used on the held-out images then, (step, k)."""
    files = Workdir(workdir).stage("vqvae").code_counts()
    if not files:
        return None
    size = len(_load_counts(files[-1][1]))
    shown = _spread(files, max(min(MAX_IMAGES, MAX_COUNTS // size), 1))
    return {
        "steps": [step for step, _ in shown],
        "counts": [_load_counts(path).tolist() for _, path in shown],
    }


def _load_counts(path: Path) -> np.ndarray:
    content = read_regular(path, MAX_FILE)
    try:
        counts = array_from(content, required=False)
        if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.size * 8 > MAX_FILE:
            raise ValueError(f"an array of {counts.dtype}{list(counts.shape)}")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it") from error
    return counts


def plans(workdir: Path) -> list[dict[str, Any]]:
    """For each order that `vqd plan` measured: the cross-entropy by the number of known tokens, and
    plans for several numbers of calls with their tokens per call, KL gap in nats, and the
    cross-entropy at which each token is drawn.
    """
    out, config = [], stored_config(workdir)
    for order, values in loading.read_plan(workdir).items():
        n = len(values)
        curve = np.diagonal(values) if values.ndim == 2 else values
        known = _thin(np.arange(n))
        calls = {*CALLS, config["sampling"]["calls"]} if config else CALLS
        planned = [
            (c, *plan.plan({order: values}, order, c))
            for c in sorted(calls)
            if c <= n <= MAX_PLANNED
        ]
        out.append(
            {
                "order": order,
                "tokens": n,
                "known": known,
                "curve": [round(float(curve[i]), 5) for i in known],
                "plans": [
                    {
                        "calls": c,
                        "counts": counts,
                        "kl_gap": round(gap, 3),
                        "at_draw": _at_draw(values, counts),
                    }
                    for c, counts, gap in planned
                ],
            }
        )
    return out


def _at_draw(values: np.ndarray, counts: Sequence[int]) -> list[float]:
    """Cross-entropy of each token (n,), given the tokens known at the start of its call."""
    known = np.repeat(np.cumsum(counts) - counts, counts)
    entropy = values[known, np.arange(len(values))] if values.ndim == 2 else values[known]
    return np.round(entropy, 5).tolist()


def evaluations(workdir: Path, faults: list[str]) -> list[tuple[Path, dict[str, Any]]]:
    """(file, result) of each JSON of `vqd evaluate` in the workdir or its subfolders. What is wrong
    with files that are no JSON, or have changed, is added to `faults`.
    """
    found = []
    folder = Workdir(workdir).path
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        try:
            text = read_regular(path, MAX_FILE).decode()
            result = unsealed(text) if text.lstrip().startswith("{") else json.loads(text)
        except (ValueError, RecursionError, UserError) as error:
            faults.append(f"{path} is damaged ({error})")
            continue
        if isinstance(result, dict) and all(
            isinstance(result.get(name), dict) for name in ("protocol", "provenance")
        ):
            found.append((path, result))
    return found


def _thin(values: np.ndarray) -> list[Any]:
    return _spread(values.tolist(), MAX_POINTS)


def _spread(items: list[Any], count: int) -> list[Any]:
    return [items[i] for i in spread(list(range(len(items))), count)]
