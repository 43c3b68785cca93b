"""Variational bound of the discrete process, in nats per token.

`bound_term` is the KL of dense posteriors, the reference. `bound_and_auxiliary` is the same number
in closed form: a few gathered log-probabilities and one sum over the codes per token, recomputed in
the backward pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqd_jax.core.shapes import Logits, LogProbs, Times, Tokens
from vqd_jax.diffusion.process import LOG_ZERO, MaskAndReplace, log_onehot

PerToken = Float[Array, "b n"]
TINY = 1e-37  # floor inside log(p + c): reached only where its weight is 0


def kl(log_p: LogProbs, log_q: LogProbs) -> PerToken:
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def bound_term(
    process: MaskAndReplace, logits: Logits, z_0: Tokens, z_t: Tokens, t: Times
) -> PerToken:
    """KL(q(z_{t-1} | z_t, z_0) || p(z_{t-1} | z_t)); at t = 1 this is -log p(z_0 | z_1)."""
    exact = process.reverse(log_onehot(z_0, process.k + 1)[..., :-1], z_t, t - 1, t)
    return kl(exact, process.reverse(logits, z_t, t - 1, t))


def bound_and_auxiliary(
    process: MaskAndReplace, logits: Logits, z_0: Tokens, z_t: Tokens, t: Times
) -> tuple[PerToken, PerToken]:
    """(`bound_term`, -log p(x_0 = z_0)) without any (b, n, k + 1) tensor in the forward pass's
    residuals.

    With a, b, g the one-step and bar{a}, bar{b} the cumulative probabilities at s = t - 1, the
    model's p(z_s = j | z_t) is proportional to bar{a}_s p_j + r S, where r = bar{b}_s and S = 1
    (after dividing by 1 - bar{g}_s) when z_t is [MASK], and S = p_v bar{b}_t / (bar{a}_t +
    bar{b}_t) + 1 - p_v when z_t is the code v; the other factors of true and model posterior are
    equal and cancel.
    """
    k, zero = process.k, jnp.zeros_like(t)
    at_s, at_t, one = (
        process.between(zero, t - 1),
        process.between(zero, t),
        process.between(t - 1, t),
    )
    flat = lambda x: x[:, :, 0]
    logits -= jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    log_norm, log_not_v = norms(logits, z_t)
    gather = lambda z: (
        jnp.take_along_axis(logits, jnp.minimum(z, k - 1)[..., None], axis=-1)[..., 0] - log_norm
    )
    log_x, log_v = gather(z_0), gather(z_t)
    masked, same = z_t == k, z_t == z_0

    log_a, log_r = flat(at_s.log_keep), flat(at_s.log_replace)
    log_a_t, log_r_t = flat(at_t.log_keep), flat(at_t.log_replace)
    log_live_s = _log_not(flat(at_s.log_mask))
    replaces = log_r_t > LOG_ZERO / 2
    log_stay_t = jnp.logaddexp(log_a_t, log_r_t)
    log_s = jnp.where(
        masked, 0.0, jnp.logaddexp(log_v + log_r_t - log_stay_t, log_not_v)
    )  # S of the docstring

    scale = jnp.where(masked, -log_live_s, 0.0)  # masked: divide by 1 - mask_s
    keep, add = log_a + scale, log_r + scale + log_s
    model_x = jnp.logaddexp(keep + log_x, add)  # log of the model's unnormalised p(z_s = z_0)
    model_v = jnp.logaddexp(keep + log_v + log_r_t - log_stay_t, add)
    model_sum = sum_log(logits, log_norm, keep, add)  # over all codes, as if none were special
    same_stay, other = (
        jnp.logaddexp(keep, log_r + scale),
        log_r + scale,
    )  # the true log-probabilities

    # z_t is [MASK]: it comes off the mask with probability `open`, and lands on z_0 or on any code.
    share = jnp.exp(other)  # r, 0 at s = 0
    rest = lambda count, total: jnp.where(share > 0, count * other - total, 0.0)
    kl_mask = jnp.exp(same_stay) * (same_stay - model_x) + share * rest(k - 1, model_sum - model_x)
    opened = 1 - jnp.exp(flat(at_s.log_mask) - flat(at_t.log_mask))
    bound_mask = opened * kl_mask

    # z_t is a code v: true and model share the factor (a [j = v] + b); D = q(v | z_0).
    log_b, log_ab = flat(one.log_replace), jnp.logaddexp(flat(one.log_keep), flat(one.log_replace))
    log_d = jnp.where(same, log_stay_t, log_r_t)
    # gap_j = log true_j - log model_j, where the model's terms carry 1 / bar{b}_t
    gap = lambda true, model: true - log_d - model + log_r_t
    to = lambda log_w: jnp.exp(log_w - log_d)
    stay_v = jnp.where(same, same_stay, other)
    kl_code = to(log_ab + stay_v) * gap(stay_v, model_v)
    kl_code += jnp.where(same, 0.0, to(log_b + same_stay) * gap(same_stay, model_x))
    plain_v = jnp.logaddexp(keep + log_v, add)  # what the sum holds at v
    count = jnp.where(same, k - 1, k - 2)
    others = model_sum - plain_v - jnp.where(same, 0.0, model_x)
    weight = to(log_b + other)
    kl_code += jnp.where(share > 0, weight * (count * (other - log_d + log_r_t) - others), 0.0)
    bound_code = jnp.where(replaces, kl_code, 0.0)
    return jnp.where(masked, bound_mask, bound_code), -log_x


@jax.checkpoint
def norms(logits: Logits, z_t: Tokens) -> tuple[PerToken, PerToken]:
    """log sum exp(logits), and log(1 - p_v) from a sum without v: p_v itself may round to 1. Logits
    are at most 0.
    """
    e = jnp.exp(logits)
    others = jnp.where(jnp.arange(logits.shape[-1])[None, None] == z_t[..., None], 0.0, e).sum(-1)
    log_norm = jnp.log(e.sum(-1))
    return log_norm, jnp.log(jnp.maximum(others, TINY)) - log_norm


@jax.checkpoint
def sum_log(logits: Logits, log_norm: PerToken, log_keep: PerToken, log_add: PerToken) -> PerToken:
    """sum_k log(keep * p_k + add)."""
    p = jnp.exp(logits - log_norm[..., None])
    return jnp.log(
        jnp.maximum(jnp.exp(log_keep)[..., None] * p + jnp.exp(log_add)[..., None], TINY)
    ).sum(-1)


def _log_not(log_p: Float[Array, "b 1"]) -> Float[Array, "b 1"]:
    """log(1 - p), LOG_ZERO at p = 1."""
    return jnp.maximum(jnp.log(jnp.maximum(-jnp.expm1(log_p), TINY)), LOG_ZERO)


def prior_term(process: MaskAndReplace) -> float:
    """KL(q(z_T | z_0) || start of the samplers) per token in nats; the start is the process's own
    end without z_0.

    The mass left on z_0 at T is 0 in every schedule but `released`, where it is 9e-6.
    """
    unmasked, intact, k = process.unmasked[-1], process.intact[-1], process.k
    alpha, beta = unmasked * intact, unmasked * (1 - intact) / k
    start = unmasked / k
    if unmasked == 0:
        return 0.0
    x = alpha + beta
    others = (k - 1) * beta * np.log(beta / start) if beta > 0 else 0.0
    return float(x * np.log(x / start) + others)
