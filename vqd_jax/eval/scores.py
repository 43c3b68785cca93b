"""Means of scores that networks give to single images, in float64: the inception score and the CLIP
score.
"""

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError
from vqd_jax.eval.checks import rows, two_sets, unit


def inception_score(
    logits: Float[np.ndarray, "n classes"], *, splits: int = 10, seed: int | None = 0
) -> tuple[float, float]:
    """exp of the mean KL(p(y | x), p(y)) within each of `splits` parts, in [1, classes]: mean and
    standard deviation over the parts.

    Salimans et al. 2016 (arXiv:1606.03498). The images are shuffled by `seed` before they are
    split, or kept in order if it is None. The published score has InceptionV3's 1008 logits without
    their bias. UserError for fewer images than splits, or if a logit is not finite.
    """
    if splits < 1:
        raise UserError(f"an inception score needs at least one split, got {splits}")
    n = len(rows(logits, "generated images", least=splits))
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    scores = [
        _divergence(logits[order[i * n // splits : (i + 1) * n // splits]].astype(np.float64))
        for i in range(splits)
    ]
    return float(np.mean(scores)), float(np.std(scores))


def _divergence(logits: Float[np.ndarray, "n classes"]) -> float:
    """exp of the mean KL divergence of the rows' distributions from their mean."""
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    marginal = p.mean(axis=0)
    seen = marginal > 0  # or a class that no image has would be 0 times infinity
    return float(
        np.exp((p[:, seen] * (log_p[:, seen] - np.log(marginal[seen]))).sum(axis=1).mean())
    )


def clip_score(images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "m e"]) -> float:
    """Mean over pairs of 100 max(cos, 0) of CLIP's embeddings of an image and its text, of any
    lengths; in [0, 100].

    Hessel et al. 2021 (arXiv:2104.08718), whose weight is 2.5 instead of 100. UserError for other
    than one text an image, for widths that differ, and for an embedding that is 0 or not finite.
    """
    images, texts = two_sets(unit(images, "images"), unit(texts, "texts"), ("images", "texts"))
    if len(images) != len(texts):
        raise UserError(
            f"a CLIP score needs one text for each image, got {len(images)} images and "
            f"{len(texts)} texts"
        )
    return float(100 * np.maximum(np.einsum("nd,nd->n", images, texts), 0).mean())
