"""Held-out splits that depend on names alone: a stable hash decides, so filters, order and machine
move no example.

`held_out_items` are groups never seen in any style; `held_out_cells` are (group, style) pairs whose
group and style are both seen in training, but not together: they measure compositional
generalisation.
"""

import hashlib
from collections.abc import Iterable

TRAIN, CELLS, ITEMS = SPLITS = ("train", "held_out_cells", "held_out_items")


def unit(*parts: str) -> float:
    """A number in [0, 1) from the SHA-256 of the parts, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(parts).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def assign(
    cells: Iterable[tuple[str, str]], *, held_out_cells: float, held_out_items: float
) -> dict[tuple[str, str], str]:
    """(group, style) → split, for all cells of a data set.

    A group whose every style would be held out keeps the one with the largest hash in training, so
    a group with a single style is never held out as a cell. The answer for a group depends on
    nothing but its name and its styles.
    """
    styles: dict[str, set[str]] = {}
    for group, style in cells:
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
