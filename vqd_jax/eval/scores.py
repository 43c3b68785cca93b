"""Scores of generated images without real ones, in float64: the inception score and the CLIP
score.
"""

import numpy as np
from jaxtyping import Float

from vqd_jax.core.errors import UserError
from vqd_jax.eval.checks import check_features, check_pair, normalize


def inception_score(
    logits: Float[np.ndarray, "n classes"], *, splits: int = 10, seed: int | None = 0
) -> tuple[float, float]:
    """exp of the mean KL(p(y | x), p(y)) within a split (Salimans et al. 2016, arXiv:1606.03498),
    in [1, classes]: mean and standard deviation over splits.

    Images are shuffled by `seed` before they are split, or kept in order if it is None. The
    published score uses InceptionV3's 1008 logits without their bias. UserError for fewer images
    than splits, or if a logit is not finite.
    """
    if splits < 1:
        raise UserError(f"an inception score needs at least one split, got {splits}")
    n = len(check_features(logits, "generated images", least=splits))
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
    seen = marginal > 0  # for other classes, 0 times infinity
    return float(
        np.exp((p[:, seen] * (log_p[:, seen] - np.log(marginal[seen]))).sum(axis=1).mean())
    )


def clip_score(images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "m e"]) -> float:
    """Mean of 100 max(cos, 0) between CLIP's embeddings of an image and its text, in [0, 100].

    Hessel et al. 2021 (arXiv:2104.08718) with the weight 100 instead of 2.5. Embeddings may have
    any length. UserError unless there is one text per image, widths match, and all embeddings are
    finite and not zero.
    """
    images, texts = check_pair(
        normalize(images, "images"), normalize(texts, "texts"), ("images", "texts")
    )
    if len(images) != len(texts):
        raise UserError(
            f"a CLIP score needs one text for each image, got {len(images)} images and "
            f"{len(texts)} texts"
        )
    return float(100 * np.maximum(np.einsum("nd,nd->n", images, texts), 0).mean())
