"""The distribution of x_0 that samplers use, from the network's logits: guidance, then temperature,
then truncation.

Guidance combines normalised log-probabilities of x_0 (Ho and Salimans 2022; Tang et al. 2022),
never the posterior.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Logits

Scalar = float | Float[Array, ""]
PromptLogits = Float[Array, "p b n k"]  # the p prompts that each image blends
Scales = Float[Array, "p b"]  # the guidance scale of each prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Guidance, temperature and truncation of p(x_0).

    Attributes:
      guidance: the scale w; 1 is no guidance and saves the second pass (the paper's s is w - 1).
      null: the condition that guidance moves away from if there is no negative prompt: "learned",
        the model's null, or "empty", the empty caption, for models trained without a null.
      ramp: let the scale grow as tokens appear: 1 + (w - 1) (1 - masked share).
      guidance_below: guide only while at most this share of the tokens is masked; earlier calls
        take one pass.
      temperature: sampling uses p^(1 / temperature), normalised.
      top_p: sample from the smallest set of codes with this mass; 1 keeps all.
      top_k: sample from the k likeliest codes; 0 keeps all.
    """

    guidance: float = 1.0
    null: str = "learned"
    ramp: bool = False
    guidance_below: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self):
        if (
            not np.isfinite(self.guidance)
            or not 0 < self.temperature < np.inf
            or not 0 < self.top_p <= 1
        ):
            raise UserError(
                "guidance must be a number, temperature positive and top_p in (0, 1], got "
                f"{self.guidance:g}, "
                f"{self.temperature:g} and {self.top_p:g}"
            )
        if self.null not in ("learned", "empty"):
            raise UserError(f"the null of guidance must be learned or empty, got {self.null!r}")
        if self.top_k < 0 or not 0 <= self.guidance_below <= 1:
            raise UserError(
                f"top_k must be 0 or more and guidance_below in [0, 1], got {self.top_k} and "
                f"{self.guidance_below:g}"
            )

    def static_guidance(self, *, guided: bool, learned_null: bool = False) -> "StaticGuidance":
        """The part that is compiled in; `guided` says whether any scale differs from 1."""
        return StaticGuidance(
            guided=guided,
            ramp=self.ramp,
            guidance_below=self.guidance_below,
            truncated=self.top_p < 1,
            top_k=self.top_k,
            learned_null=learned_null,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaticGuidance:
    """The part of a `GuidanceConfig` that decides what is compiled."""

    guided: bool = False
    ramp: bool = False
    guidance_below: float = 1.0
    truncated: bool = False
    top_k: int = 0
    learned_null: bool = False  # guidance moves away from the learned null for every image

    def guides(self, masked: Float[np.ndarray, " calls"]) -> Bool[np.ndarray, " calls"]:
        """True at the calls that need the second pass; `masked` is each call's masked share."""
        return (masked <= self.guidance_below) & self.guided

    def combine(
        self,
        logits: Float[Array, "q b n k"],
        scales: Scales,
        unmasked: Float[Array, " b"],
        *,
        guided: bool,
    ) -> Logits:
        """Combines the logits of the prompts, and with `guided` those of the null, which come last.

        `unmasked` is the share of tokens that are not [MASK].
        """
        if not guided:
            return blend(logits, scales)
        scales = ramp_scale(scales, unmasked) if self.ramp else scales
        return guide(logits[:-1], logits[-1], scales)

    def shape(self, logits: Logits, temperature: Scalar, top_p: Scalar) -> Logits:
        """Applies temperature, then truncation. Codes that are kept have their log p before
        truncation, the others -1e4.
        """
        logits = apply_temperature(logits, temperature)
        logits = top_p_filter(logits, top_p) if self.truncated else logits
        return top_k_filter(logits, self.top_k) if self.top_k else logits


def guide(logits: PromptLogits, null_logits: Logits, scales: Scales) -> Logits:
    """null + sum_p scale_p (logits_p - null), on normalised logits."""
    log_p, log_null = jax.nn.log_softmax(logits), jax.nn.log_softmax(null_logits)
    return log_null + jnp.einsum("pb,pbnk->bnk", scales, log_p - log_null[None])


def blend(logits: PromptLogits, scales: Scales) -> Logits:
    """The geometric mean of the prompts' distributions, weighted by their scales: several prompts
    without guidance.
    """
    if logits.shape[0] == 1:
        return logits[0]
    weights = scales / scales.sum(0, keepdims=True)
    return jnp.einsum("pb,pbnk->bnk", weights, jax.nn.log_softmax(logits))


def ramp_scale(scales: Scales, unmasked: Float[Array, " b"]) -> Scales:
    """Rescales the scales so that their sum w becomes 1 + (w - 1) * unmasked."""
    total = scales.sum(0)
    return scales * ((1 + (total - 1) * unmasked) / total)[None]


def apply_temperature(logits: Logits, temperature: Scalar) -> Logits:
    """log of p^(1 / temperature), normalised."""
    return jax.nn.log_softmax(logits / temperature)


def top_p_filter(logits: Logits, top_p: Scalar) -> Logits:
    """log p of the smallest set of codes whose mass reaches top_p, and -1e4 for the others
    (Holtzman et al. 2020).

    The threshold is found by bisection on log p, without sorting. Codes of equal probability are
    kept or removed together.
    """
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    mass = lambda threshold: jnp.sum(jnp.where(log_p >= threshold, p, 0.0), axis=-1, keepdims=True)
    high = log_p.max(-1, keepdims=True)  # always keeps the mode

    def halve(_, bounds):
        low, high = bounds  # mass(low) reaches top_p, mass(high) may not
        middle = (low + high) / 2
        enough = mass(middle) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.full_like(high, -80.0)
    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    low = jnp.where(mass(high) >= top_p, high, low)
    # at 1 all are kept, although float32 sums reach 1 early
    return jnp.where((log_p >= _just_below(low)) | (top_p >= 1), log_p, -1e4)


def top_k_filter(logits: Logits, count: int) -> Logits:
    """The logits of the `count` likeliest codes and of ties with the last, and -1e4 for the
    others.
    """
    last = jax.lax.top_k(logits, min(count, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= _just_below(last), logits, -1e4)


def _just_below(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """x less a few units in the last place. A compiled program may compute the same logits twice,
    in two fused kernels with other rounding, so that the code at the threshold would not reach it.
    """
    return x - 2e-6 * (1 + jnp.abs(x))
