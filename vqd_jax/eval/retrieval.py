"""Retrieval: whether the nearest real images of a generated image, by pretrained features, show
what its prompt asked for.

Images have a group (what is drawn; variants such as skin tones share one) and a style (how).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError
from vqd_jax.eval.intervals import share

_TIE = 1e-9  # cosine distances closer than this are equal


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Retrieved:
    """Credit of each image in [0, 1]: 1 if its prompt was met, fractions where ties are broken in
    expectation.

    Attributes:
      hits: rank k -> whether the prompted group is one of the k nearest.
      chance: rank k -> the credit expected of an image unrelated to its prompt.
      right_style: whether the nearest image of the gallery has the prompted style.
    """

    hits: Mapping[int, Float[np.ndarray, " n"]]
    chance: Mapping[int, Float[np.ndarray, " n"]]
    right_style: Float[np.ndarray, " n"]

    def __add__(self, other: "Retrieved") -> "Retrieved":
        join = lambda a, b: {k: np.concatenate([a[k], b[k]]) for k in a}
        return Retrieved(
            hits=join(self.hits, other.hits),
            chance=join(self.chance, other.chance),
            right_style=np.concatenate([self.right_style, other.right_style]),
        )

    def measures(self) -> dict[str, Any]:
        """Means over images, with Wilson's 95 % intervals."""
        return {
            **{f"chance@{k}": float(x.mean()) for k, x in self.chance.items()},
            **{
                name: v
                for k, x in self.hits.items()
                for name, v in share(f"retrieval@{k}", x).items()
            },
            **share("style_accuracy", self.right_style),
        }


def retrieve(
    features: Float[np.ndarray, "n d"],
    groups: Sequence[str] | np.ndarray,
    styles: Sequence[str] | np.ndarray,
    gallery: Float[np.ndarray, "m d"],
    gallery_groups: Sequence[str] | np.ndarray,
    gallery_styles: Sequence[str] | np.ndarray,
    *,
    ranks: Sequence[int] = (1, 5),
) -> Retrieved:
    """Scores generated images, whose prompts asked for `groups` in `styles`, against a gallery of
    real images.

    retrieval@k: the prompted group is one of the k nearest groups among the gallery's images of the
    prompted style; the distance of a group is that of its nearest image. style_accuracy: the
    nearest image of the gallery has the prompted style. chance@k: expected score of an image
    unrelated to its prompt.

    Distances are cosine distances, which worked better on blurred and noisy emoji than Euclidean,
    standardised or centred ones. Ties are broken at random in expectation. The gallery should have
    the resolution of the generated images. UserError if it lacks a prompted (group, style).
    """
    groups, styles = np.asarray(groups), np.asarray(styles)
    gallery_groups, gallery_styles = np.asarray(gallery_groups), np.asarray(gallery_styles)
    for name, rows, *labels in (
        ("generated", features, groups, styles),
        ("gallery", gallery, gallery_groups, gallery_styles),
    ):
        if not len(rows) or any(len(rows) != len(a) for a in labels):
            raise UserError(
                f"retrieval needs one group and one style for each {name} image, got {len(rows)} "
                f"images, {len(labels[0])} groups and {len(labels[1])} styles"
            )
    if min(ranks) < 1:
        raise UserError(f"retrieval ranks start at 1, got {tuple(ranks)}")
    distance = 1 - _unit(features) @ _unit(gallery).T
    hits, chance = ({k: np.zeros(len(features)) for k in ranks} for _ in range(2))
    all_styles = np.unique(gallery_styles)
    to_style = np.empty((len(features), len(all_styles)))
    for s, style in enumerate(all_styles):
        columns, rows = np.flatnonzero(gallery_styles == style), np.flatnonzero(styles == style)
        to_style[:, s] = distance[:, columns].min(axis=1)
        if not len(rows):
            continue
        columns = columns[np.argsort(gallery_groups[columns], kind="stable")]
        names, starts = np.unique(gallery_groups[columns], return_index=True)
        to_group = np.minimum.reduceat(distance[np.ix_(rows, columns)], starts, axis=1)
        wanted = _positions(groups[rows], names, str(style))
        credit = _credit(to_group, wanted, ranks)
        for k in ranks:
            hits[k][rows], chance[k][rows] = credit[k], min(1, k / len(names))
    right_style = _credit(to_style, _positions(styles, all_styles, "any"), (1,))[1]
    return Retrieved(hits=hits, chance=chance, right_style=right_style)


def _credit(
    distance: Float[np.ndarray, "q r"], wanted: np.ndarray, ranks: Sequence[int]
) -> dict[int, np.ndarray]:
    """Probability that column `wanted` of each row is among the k smallest, with ties broken at
    random.
    """
    reference = np.take_along_axis(distance, wanted[:, None], axis=1)
    nearer = (distance < reference - _TIE).sum(axis=1)
    tied = (np.abs(distance - reference) <= _TIE).sum(axis=1)
    return {k: np.clip((k - nearer) / tied, 0, 1) for k in ranks}


def _positions(wanted: np.ndarray, names: np.ndarray, style: str) -> np.ndarray:
    if missing := sorted(set(wanted.tolist()) - set(names.tolist())):
        raise UserError(
            f"the gallery has no real image of {missing[0]!r} in the style {style!r}"
            + (f" ({len(missing)} such prompts)" if len(missing) > 1 else "")
        )
    return np.searchsorted(names, wanted)


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
