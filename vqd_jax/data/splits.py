"""Held-out splits decided by a stable hash of names, so they are independent of filters, order and
machine.

Groups in `held_out_items` appear in training in no style. `held_out_cells` are emoji-style pairs
(a cell of the table of emoji by style): training has the emoji in other styles and the style with
other emoji, but not both together, so they measure compositional generalisation.

Each held-out split has two halves: on "validation" checkpoints and settings are chosen, on "test"
results are measured.
"""

import hashlib
from collections.abc import Iterable

TRAIN, CELLS, ITEMS = SPLITS = ("train", "held_out_cells", "held_out_items")
TRAIN_VARIANTS, COLOURS, PAIRS = VARIANTS = (
    "train_variants",
    "held_out_colours",
    "held_out_pairs",
)
VALIDATION, TEST = HALVES = ("validation", "test")


def unit(*parts: str) -> float:
    """A number in [0, 1) from the SHA-256 of the parts, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(parts).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def assign(
    pairs: Iterable[tuple[str, str]], *, held_out_cells: float, held_out_items: float
) -> dict[tuple[str, str], str]:
    """(group, style) → split, for all pairs of a data set.

    held_out_cells, held_out_items: the share of pairs and of groups to hold out. If all pairs of a
    group were drawn, the one with the largest hash stays in training, so a group with one style is
    held out only as a group. The split of a group depends on its name and its styles alone.
    """
    styles: dict[str, set[str]] = {}
    for group, style in pairs:
        styles.setdefault(group, set()).add(style)
    out = {}
    for group, own in styles.items():
        if unit("item", group) < held_out_items:
            out |= {(group, style): ITEMS for style in own}
            continue
        draws = {style: unit("cell", group, style) for style in own}
        kept = max(own, key=draws.__getitem__)
        out |= {
            (group, style): CELLS if draws[style] < held_out_cells and style != kept else TRAIN
            for style in own
        }
    return out


def half(split: str, group: str, style: str = "") -> str:
    """The half of a held-out split to which a pair belongs: the parity of a hash of its names. All
    styles of a group that is held out as a whole are in one half.
    """
    names = (group,) if split == ITEMS else (group, style)
    return HALVES[int(2 * unit("half", *names))]
