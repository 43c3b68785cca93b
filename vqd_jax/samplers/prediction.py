"""From the network's logits to the distribution of x_0 that a sampler uses: guidance, then temperature, then truncation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqd_jax.shapes import Logits

Scalar = float | Float[Array, ""]


def guide(logits: Logits, null_logits: Logits, scale: Scalar) -> Logits:
    """Classifier-free guidance: null + scale * (conditional - null), on normalised logits; scale 1 is the conditional."""
    log_p, log_null = jax.nn.log_softmax(logits), jax.nn.log_softmax(null_logits)
    return log_null + scale * (log_p - log_null)


def temper(logits: Logits, temperature: Scalar) -> Logits:
    """p^(1 / temperature), normalised; small temperatures approach the mode."""
    return jax.nn.log_softmax(logits / temperature)


def nucleus(logits: Logits, top_p: Scalar) -> Logits:
    """The smallest set of codes whose mass reaches top_p keeps its logits, the rest gets -1e4 (Holtzman et al. 2020).

    The threshold is found by bisection on the logarithm of the probability, without sorting; codes of equal probability
    stay or go together.
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
    return jnp.where((log_p >= low) | (top_p >= 1), log_p, -1e4)  # all of them at 1: float32 sums reach 1 early
