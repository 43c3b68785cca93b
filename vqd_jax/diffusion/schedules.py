"""Noise schedules: each returns a `MaskAndReplace` with its tables built in float64.

`paper` is the text of Gu et al. 2022 (90 % masked, 10 % replaced at the end); `released` is what
their code trains.
"""

import numpy as np

from vqd_jax.core.errors import UserError
from vqd_jax.diffusion.process import MaskAndReplace


def paper(T: int, k: int, final_mask: float = 0.9) -> MaskAndReplace:
    """Intact with probability 1 - t/T, [MASK] with final_mask * t/T, else a uniform code."""
    if not 0 <= final_mask <= 1:
        raise UserError(
            f"the final share of [MASK] is a probability, got final_mask {final_mask:g}"
        )
    t = _ramp(T)
    return from_probabilities(1 - t, 1 - final_mask * t, k)


def released(T: int, k: int) -> MaskAndReplace:
    """The linear tables of the released code: from 0.99999 intact to 0.99999 masked, with 1e-6
    replaced at every time.
    """
    if T < 2:
        raise UserError(f"the released schedule needs T >= 2, got {T}")
    alpha = np.append(1, np.linspace(0.99999, 0.000009, T))
    mask = np.append(0, np.linspace(0.000009, 0.99999, T))
    return from_probabilities(alpha, 1 - mask, k)


def stored(log_alpha: np.ndarray, log_beta: np.ndarray, k: int) -> MaskAndReplace:
    """From the buffers log_cumprod_at and log_cumprod_bt (T + 1,) of a released checkpoint, whose
    last entry is t = 0.

    They are float32 logs. P(not masked) is alpha + k beta, which keeps more digits than 1 - mask.
    """
    if log_alpha.shape != log_beta.shape or log_alpha.ndim != 1 or len(log_alpha) < 2:
        raise UserError(
            f"a stored schedule is two tables of T + 1 numbers, got shapes {log_alpha.shape} and "
            f"{log_beta.shape}"
        )
    alpha, beta = (np.exp(np.roll(np.asarray(x, np.float64), 1)) for x in (log_alpha, log_beta))
    if abs(alpha[0] - 1) > 1e-6 or k * beta[0] > 1e-6:
        raise UserError(
            "the last entry of a stored schedule must be clean data, with alpha 1 and beta 0"
        )
    alpha[0], beta[0] = 1, 0
    if not (np.isfinite(alpha) & np.isfinite(beta) & (alpha + k * beta > 0)).all():
        raise UserError(
            "the tables of a stored schedule must be logarithms of probabilities, with alpha + "
            "k beta positive at every time"
        )
    falling = np.minimum.accumulate
    return from_rates(falling(alpha + k * beta), falling(alpha / (alpha + k * beta)), k)


def absorbing(T: int, k: int) -> MaskAndReplace:
    """[MASK] with probability t/T, nothing is ever replaced."""
    return from_rates(1 - _ramp(T), np.ones(T + 1), k)


def cosine(T: int, k: int) -> MaskAndReplace:
    """[MASK] with probability sin(pi/2 t/T), nothing is ever replaced. In sampling, few tokens
    appear at first (MaskGIT).
    """
    return from_rates(np.append(1 - np.sin(np.pi / 2 * _ramp(T)[:-1]), 0), np.ones(T + 1), k)


def hybrid(T: int, k: int, replaced: float = 0.2) -> MaskAndReplace:
    """[MASK] with probability r = t/T; of the other tokens a share of 4 * replaced * r is replaced.

    So 4 * replaced * r (1 - r) of all tokens are replaced: none at first, `replaced` at t = T/2,
    and none at the end, which is masks only. This is the idea of the hybrid noise of von Rütte et
    al. 2025 (GIDD, arXiv:2503.04482) within mask-and-replace. `replaced` = 0 is `absorbing`.
    """
    if not 0 <= replaced <= 0.25:
        raise UserError(
            "the share of replaced tokens of the schedule hybrid must lie in [0, 0.25], got "
            f"replaced {replaced:g}"
        )
    r = _ramp(T)
    return from_rates(1 - r, 1 - 4 * replaced * r, k)


def uniform(T: int, k: int) -> MaskAndReplace:
    """A uniform code with probability t/T, nothing is ever masked."""
    return from_rates(np.ones(T + 1), 1 - _ramp(T), k)


def from_probabilities(alpha: np.ndarray, unmasked: np.ndarray, k: int) -> MaskAndReplace:
    """From cumulative P(intact) and P(not masked), float64 (T + 1,); where all codes are masked,
    they count as intact.
    """
    intact = np.divide(alpha, unmasked, out=np.ones_like(alpha), where=unmasked > 0)
    return from_rates(unmasked, intact, k)


def from_rates(unmasked: np.ndarray, intact: np.ndarray, k: int) -> MaskAndReplace:
    """From P(not masked) and P(not replaced | not masked), float64 (T + 1,)."""
    return MaskAndReplace(unmasked=tuple(unmasked.tolist()), intact=tuple(intact.tolist()), k=k)


def _ramp(T: int) -> np.ndarray:
    """0 to 1 in T steps."""
    if T < 1:
        raise UserError(f"the number of diffusion steps T must be at least 1, got {T}")
    return np.arange(T + 1) / T
