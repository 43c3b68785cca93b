"""The parts of the protocol emoji64 that need special prompts: colours, two things, and words that
training never has. Each is measured on the drawn images and, as a ceiling, on the codec's
reconstructions of real images that show the same.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vqd_jax.data import splits
from vqd_jax.data.batches import indices, spread
from vqd_jax.data.emoji_captions import caption, phrase
from vqd_jax.data.emoji_synonyms import SYNONYMS
from vqd_jax.data.hues import COLOURS, colour_of
from vqd_jax.data.source import Items, Record
from vqd_jax.eval.collect import evenly_spaced
from vqd_jax.eval.evaluation import MIN_IMAGES, Evaluation, RecordImages
from vqd_jax.eval.evaluator import Scored
from vqd_jax.eval.image_regions import Mapped, half, trimmed
from vqd_jax.eval.intervals import share
from vqd_jax.eval.retrieval import Retrieved, retrieve
from vqd_jax.inference.prompts import escape_prompt

OBJECTS = (
    "cup",
    "lamp",
    "sofa",
    "cake",
    "helmet",
    "shoe",
    "tree",
    "flower",
    "bottle",
    "ball",
    "house",
    "hat",
)  # of free prompts such as "purple sofa"

Measure = Callable[[Items, str], dict[str, Any]]  # (images, description of them) -> measures


def drawn_parts(evaluation: Evaluation, folder: Path, batch: int) -> dict[str, Scored]:
    """The measured parts of the protocol's measures by name, without those for which the data set
    has too few records. Images are drawn into a folder for each part, see `Evaluation.draw`.
    """
    parts = {
        "colours": colours,
        "free_colours": free_colours,
        "two_things": two_things,
        "synonyms": synonyms,
    }
    scored = {
        name: part(evaluation, folder / name, batch)
        for name, part in parts.items()
        if name in evaluation.protocol.measures
    }
    return {name: part for name, part in scored.items() if part}


def colours(evaluation: Evaluation, folder: Path, batch: int) -> Scored | None:
    """Held-out (emoji, colour) pairs: retrieval of thing and colour among all recoloured images of
    the style, and whether the main colour is the prompted one.
    """
    records = evaluation.half_of(splits.COLOURS)
    if len(records) < MIN_IMAGES:
        return None
    everything = evaluation.source.records
    recoloured = [i for i, record in enumerate(everything) if record.part == "recoloured"]
    gallery = evaluation.retrieval_features(
        RecordImages(evaluation.source, recoloured), "gallery of recoloured images"
    ).features
    chosen, others = ([everything[i] for i in which] for which in (records, recoloured))
    label = lambda record: f"{record.thing} {colour_word(record)}"

    def measure(images: Items, description: str) -> dict[str, Any]:
        found = retrieve(
            evaluation.retrieval_features(images, description).features,
            [label(record) for record in chosen],
            [record.style for record in chosen],
            gallery,
            [label(record) for record in others],
            [record.style for record in others],
        )
        return found.measures() | share(
            "colour_accuracy", colour_hits(images, [colour_word(record) for record in chosen])
        )

    prompts = [escape_prompt(record.captions[0]) for record in chosen]
    part = _scored(evaluation, folder, batch, prompts, measure, evaluation.decoded(records))
    part.result["gallery"] = len(recoloured)
    return part


def free_colours(evaluation: Evaluation, folder: Path, batch: int) -> Scored | None:
    """OBJECTS in all colours, by prompts such as "purple sofa", in turn without a style and in each
    style: whether the main colour is the prompted one. The ceiling is that of recoloured images.
    """
    styles = _styles(evaluation)
    rounds = -(-evaluation.protocol.images // (len(OBJECTS) * len(COLOURS)))
    names = [
        (f"{colour} {thing}", colour, styles[(r - 1) % len(styles)] if r else "")
        for r in range(rounds)
        for thing in OBJECTS
        for colour in COLOURS
    ]
    names = [names[i] for i in evenly_spaced(len(names), evaluation.protocol.images)]
    if len(names) < MIN_IMAGES:
        return None
    prompts = [caption(name, style) if style else name for name, _, style in names]
    part = _scored(
        evaluation,
        folder,
        batch,
        prompts,
        lambda images, _: share("colour_accuracy", colour_hits(images, [c for _, c, _ in names])),
    )
    if records := evaluation.half_of(splits.COLOURS):
        words = [colour_word(evaluation.source.records[i]) for i in records]
        hits = colour_hits(evaluation.decoded(records), words)
        part.result["ceiling"] = share("colour_accuracy", hits)
    return part


def two_things(evaluation: Evaluation, folder: Path, batch: int) -> Scored | None:
    """Held-out pairs of things side by side, the first one left: whether each half of the image
    retrieves its thing, and whether both do. Halves and real images are cropped to what they show.
    """
    records = [
        i
        for i in indices(evaluation.source, evaluation.protocol.half_of(splits.PAIRS))
        if " and " in evaluation.source.records[i].captions[0]
    ]
    records = spread(records, evaluation.protocol.images)
    if len(records) < MIN_IMAGES:
        return None
    chosen = [evaluation.source.records[i] for i in records]
    size = evaluation.model.config.data.image_size
    originals = RecordImages(evaluation.source, evaluation.originals)
    gallery = evaluation.retrieval_features(
        Mapped(originals, lambda image: trimmed(image, size)), "gallery of cropped images"
    ).features
    _, groups, styles = evaluation.gallery

    def measure(images: Items, description: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        both = np.ones(len(images))
        for side, name in enumerate(("first", "second")):
            crops = Mapped(images, lambda image, side=side: trimmed(half(image, side), size))
            found = retrieve(
                evaluation.retrieval_features(crops, f"{description}, {name} halves").features,
                [record.group.split("+")[side] for record in chosen],
                [record.style for record in chosen],
                gallery,
                groups,
                styles,
                ranks=(1,),
            )
            values |= share(f"{name}_retrieval@1", found.hits[1])
            both *= found.hits[1]
        return values | share("both_retrieval@1", both)

    prompts = [escape_prompt(record.captions[0]) for record in chosen]
    return _scored(evaluation, folder, batch, prompts, measure, evaluation.decoded(records))


def synonyms(evaluation: Evaluation, folder: Path, batch: int) -> Scored | None:
    """SYNONYMS, in turn without a style and in a style in which training shows the meant emoji:
    retrieval of that emoji among the originals of the style, or of all styles. The ceiling decodes
    its real image. Words whose emoji is held out in all styles are left out.
    """
    records, styles = evaluation.source.records, _styles(evaluation)
    trained = [i for i in evaluation.originals if records[i].split == splits.TRAIN]
    by_caption = {records[i].captions[0]: i for i in trained}
    meant = {
        word: [by_caption[text] for style in styles if (text := caption(name, style)) in by_caption]
        for word, name in SYNONYMS.items()
    }
    meant = {word: found for word, found in meant.items() if found}
    if not meant:
        return None
    asked = [
        (word, found[(r - 1 + n) % len(found)], bool(r))
        for r in range(-(-evaluation.protocol.images // len(meant)))
        for n, (word, found) in enumerate(meant.items())
    ]
    asked = [asked[i] for i in evenly_spaced(len(asked), evaluation.protocol.images)]
    if len(asked) < MIN_IMAGES:
        return None
    gallery, groups, gallery_styles = evaluation.gallery
    prompts = [
        caption(word, records[i].style) if styled else f"an emoji of {phrase(word)}"
        for word, i, styled in asked
    ]

    def measure(images: Items, description: str) -> dict[str, Any]:
        features = evaluation.retrieval_features(images, description).features
        found: list[Retrieved] = []
        for styled in (True, False):
            rows = [n for n, (*_, has_style) in enumerate(asked) if has_style == styled]
            if not rows:
                continue
            wanted = [records[asked[n][1]] for n in rows]
            found.append(
                retrieve(
                    features[rows],
                    [record.thing for record in wanted],
                    [record.style if styled else "" for record in wanted],
                    gallery.features,
                    groups,
                    gallery_styles if styled else [""] * len(groups),
                )
            )
        values = found[0].measures() if len(found) == 1 else (found[0] + found[1]).measures()
        return {name: value for name, value in values.items() if "style" not in name}

    ceiling = evaluation.decoded([i for _, i, _ in asked])
    part = _scored(evaluation, folder, batch, prompts, measure, ceiling)
    part.result["words"] = len(meant)
    return part


def _scored(
    evaluation: Evaluation,
    folder: Path,
    batch: int,
    prompts: Sequence[str],
    measure: Measure,
    ceiling: Items | None = None,
) -> Scored:
    """Draws images of the prompts, and measures them and the images of the ceiling."""
    images, rate = evaluation.draw(folder, prompts, batch)
    result: dict[str, Any] = {"generated": measure(images, f"{folder.name}: generated images")}
    if ceiling is not None:
        result["ceiling"] = measure(ceiling, f"{folder.name}: decoded real images")
    result |= {"images": len(images), "images_per_second": rate}
    return Scored(
        result=result, images=images, prompts=prompts, kernel=np.zeros(0), similarity=None
    )


def _styles(evaluation: Evaluation) -> list[str]:
    """The styles of the data set, in its order."""
    records = evaluation.source.records
    return [*dict.fromkeys(records[i].style for i in evaluation.originals)]


def colour_word(record: Record) -> str:
    """The colour that a recoloured record's caption names."""
    return next(word for word in record.captions[0].split() if word in COLOURS)


def colour_hits(images: Items, words: Sequence[str]) -> Float[np.ndarray, " n"]:
    """1 for each image whose main colour is the one of its word, else 0."""
    indices_of = [colour_of(images[i]).index for i in range(len(images))]
    return np.array([float(i == COLOURS.index(word)) for i, word in zip(indices_of, words)])
