"""The variational bound in continuous time: what the KL of the posteriors becomes when the steps
get infinitely short.

Between the whole times of the tables the two fates fall in straight lines. The rate needs no more
than the bound does: gathered log-probabilities and one sum over the codes per token (Campbell et
al. 2022; Shi et al. 2024 for masks alone).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqd_jax.core.shapes import Logits, Times, Tokens
from vqd_jax.diffusion.elbo import TINY, PerToken, norms, sum_log
from vqd_jax.diffusion.process import Kernel, MaskAndReplace

Back = Float[Array, " b"]  # in [0, 1): the real time is t - back, in steps


def kernel_at(process: MaskAndReplace, t: Times, back: Back) -> Kernel:
    """q(z | z_0) at the real times t - back."""
    unmasked, intact = _at(process, t, back)[:2]
    log = lambda x: jnp.log(jnp.maximum(x, TINY))[:, None, None]
    return Kernel(
        log_keep=log(unmasked * intact),
        log_replace=log(unmasked * (1 - intact) / process.k),
        log_mask=log(1 - unmasked),
    )


def rate_and_auxiliary(
    process: MaskAndReplace, logits: Logits, z_0: Tokens, z_t: Tokens, t: Times, back: Back
) -> tuple[PerToken, PerToken]:
    """(d bound / d time at t - back in nats per step, -log p(x_0 = z_0)); its integral over (0, T]
    is the bound.

    A masked token lands on j at a rate proportional to q(j | z_0); a code v turns back into j at
    (replacing rate / k) q(j | z_0) / q(v | z_0), whose expectation under the model needs sum_k
    log(keep p_k + add).
    """
    k, column = process.k, lambda x: x[:, None]
    unmasked, intact, fall_unmasked, fall_intact = _at(process, t, back)
    logits -= jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    log_norm, log_not_v = norms(logits, z_t)
    gather = lambda z: (
        jnp.take_along_axis(logits, jnp.minimum(z, k - 1)[..., None], axis=-1)[..., 0] - log_norm
    )
    log_x, log_v = gather(z_0), gather(z_t)
    masked, same = z_t == k, z_t == z_0
    i, b = column(intact), column((1 - intact) / k)  # q(j | z_0, not masked) = i [j = z_0] + b
    replaces = b > 0
    log_b, log_i = jnp.log(jnp.maximum(b, TINY)), jnp.log(jnp.maximum(i, TINY))
    log_own = jnp.logaddexp(log_i, log_b)

    # A code v: add is b S, with S = p_v / (i + b) + (1 - p_v) / b the expectation of 1 / q(v |
    # x_0).
    log_add = jnp.where(masked, log_b, jnp.logaddexp(log_v + log_b - log_own, log_not_v))
    log_keep = jnp.where(masked, log_i, log_i - log_b)
    total = sum_log(logits, log_norm, log_keep, log_add)  # over all codes
    at = lambda log_p: jnp.logaddexp(log_keep + log_p, log_add)  # log of the model's rate to a code
    rest = jnp.where(replaces, b * ((k - 1) * log_b - (total - at(log_x))), 0.0)
    kl_mask = (i + b) * (log_own - at(log_x)) + rest
    rate_mask = column(fall_unmasked / jnp.maximum(1 - unmasked, TINY)) * kl_mask

    others = total - at(log_v)  # log model rates to all codes but v
    sum_model = jnp.exp(log_keep + log_not_v) + (k - 1) * jnp.exp(log_add)
    ratio = jnp.exp(log_own - log_b)  # q(z_0 | z_0) / q(v | z_0) for a replaced v
    stayed = (k - 1) / ratio * (log_b - log_own - 1) - others / ratio + sum_model
    moved = ratio * (log_own - log_b - at(log_x) - 1) - (k - 2) - (others - at(log_x)) + sum_model
    speed = column(fall_intact / jnp.maximum(intact, TINY)) / k
    rate_code = jnp.where(replaces, speed * jnp.where(same, stayed, moved), 0.0)
    return jnp.where(masked, rate_mask, rate_code), -log_x


def _at(process: MaskAndReplace, t: Times, back: Back) -> tuple[Back, Back, Back, Back]:
    """unmasked, intact, and how much each falls per step, at the real times t - back."""

    def line(table):
        table = np.asarray(table)
        fall = jnp.asarray(-np.diff(table, prepend=table[0]), jnp.float32)[t]
        return jnp.asarray(table, jnp.float32)[t] + back * fall, fall

    (unmasked, fall_unmasked), (intact, fall_intact) = line(process.unmasked), line(process.intact)
    return unmasked, intact, fall_unmasked, fall_intact
