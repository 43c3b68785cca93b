"""From the network's logits to the distribution of x_0 that a sampler uses: guidance, then
temperature, then truncation.

Guidance acts on normalised log-probabilities of x_0 (Ho and Salimans 2022; Tang et al. 2022), never
on the posterior.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Logits

Scalar = float | Float[Array, ""]
Several = Float[Array, "p b n k"]  # of several prompts for each image
Scales = Float[Array, "p b"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Attributes:
    guidance: scale w; 1 is none and saves the second pass (the paper's s is w - 1).
    null: what it leads away from without a negative prompt: the "learned" null, or the "empty"
      caption, for models that were trained without one.
    ramp: let it grow as tokens appear: 1 + (w - 1) (1 - masked share).
    guidance_below: guidance acts only while at most this share of the tokens is masked; calls
    before take one pass.
    temperature: p^(1 / temperature); below 1 is nearer to the mode.
    top_p: the smallest set of codes with this mass; 1 is all. top_k: the k likeliest codes; 0 is
    all.
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

    def static_guidance(self, *, guided: bool) -> "StaticGuidance":
        """What is in use; `guided` says whether any scale differs from 1."""
        return StaticGuidance(
            guided=guided,
            ramp=self.ramp,
            guidance_below=self.guidance_below,
            truncated=self.top_p < 1,
            top_k=self.top_k,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaticGuidance:
    """The part of a `GuidanceConfig` that decides what is compiled."""

    guided: bool = False
    ramp: bool = False
    guidance_below: float = 1.0
    truncated: bool = False
    top_k: int = 0

    def guides(self, masked: Float[np.ndarray, " calls"]) -> Bool[np.ndarray, " calls"]:
        """At which calls, by the share of tokens that the schedule masks there, the second pass is
        needed.
        """
        return (masked <= self.guidance_below) & self.guided

    def combine(
        self,
        logits: Float[Array, "q b n k"],
        scales: Scales,
        live: Float[Array, " b"],
        *,
        guided: bool,
    ) -> Logits:
        """The prompts' logits as one; with `guided` the last of them is the null. `live` is the
        share of known tokens.
        """
        if not guided:
            return blend(logits, scales)
        return guide(logits[:-1], logits[-1], ramp_scale(scales, live) if self.ramp else scales)

    def shape(self, logits: Logits, temperature: Scalar, top_p: Scalar) -> Logits:
        """Temperature, then truncation."""
        logits = apply_temperature(logits, temperature)
        logits = top_p_filter(logits, top_p) if self.truncated else logits
        return top_k_filter(logits, self.top_k) if self.top_k else logits


def guide(logits: Several, null_logits: Logits, scales: Scales) -> Logits:
    """null + sum_p scale_p (logits_p - null), on normalised logits; one prompt at scale 1 is that
    prompt.
    """
    log_p, log_null = jax.nn.log_softmax(logits), jax.nn.log_softmax(null_logits)
    return log_null + jnp.einsum("pb,pbnk->bnk", scales, log_p - log_null[None])


def blend(logits: Several, scales: Scales) -> Logits:
    """The prompts' geometric mean with weights in proportion to the scales: guidance of 1, which
    needs no null.
    """
    if logits.shape[0] == 1:
        return logits[0]
    return jnp.einsum(
        "pb,pbnk->bnk", scales / scales.sum(0, keepdims=True), jax.nn.log_softmax(logits)
    )


def ramp_scale(scales: Scales, live: Float[Array, " b"]) -> Scales:
    """Scales whose sum w becomes 1 + (w - 1) live, where `live` is the share of tokens that are not
    masked.
    """
    total = scales.sum(0)
    return scales * ((1 + (total - 1) * live) / total)[None]


def apply_temperature(logits: Logits, temperature: Scalar) -> Logits:
    """p^(1 / temperature), normalised; small temperatures approach the mode."""
    return jax.nn.log_softmax(logits / temperature)


def top_p_filter(logits: Logits, top_p: Scalar) -> Logits:
    """The smallest set of codes whose mass reaches top_p keeps its logits, the rest gets -1e4
    (Holtzman et al. 2020).

    The threshold is found by bisection on the logarithm of the probability, without sorting; codes
    of equal probability stay or go together.
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
    return jnp.where(
        (log_p >= low) | (top_p >= 1), log_p, -1e4
    )  # all of them at 1: float32 sums reach 1 early


def top_k_filter(logits: Logits, count: int) -> Logits:
    """The `count` likeliest codes keep their logits, the rest gets -1e4; ties with the last of them
    stay.
    """
    last = jax.lax.top_k(logits, min(count, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= last, logits, -1e4)
