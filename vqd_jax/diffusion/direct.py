"""p(z_{t-1} | z_t) as the network's own softmax over codes and [MASK], without x_0: what predicting
x_0 is compared with.

Trained by the same bound (Gu et al. 2022, eq. 8); there is one such distribution for each step, so
that none can be skipped.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqd_jax.core.shapes import LogProbs, Times, Tokens
from vqd_jax.diffusion.elbo import kl
from vqd_jax.diffusion.process import LOG_ZERO, MaskAndReplace, log1m_exp, log_onehot


def log_previous(
    process: MaskAndReplace, logits: Float[Array, "b n v"], z_t: Tokens, t: Times
) -> LogProbs:
    """log p(z_{t-1} | z_t); [MASK] has a chance only where it can have been: before [MASK], and not
    in clean data.
    """
    possible = (z_t == process.k) & (t > 1)[:, None]
    is_mask = jnp.arange(process.k + 1) == process.k
    return jax.nn.log_softmax(
        jnp.where(is_mask[None, None] & ~possible[..., None], LOG_ZERO, logits)
    )


def bound_of_previous(
    process: MaskAndReplace, logits: Float[Array, "b n v"], z_0: Tokens, z_t: Tokens, t: Times
) -> Float[Array, "b n"]:
    """KL(q(z_{t-1} | z_t, z_0) || p(z_{t-1} | z_t)); at t = 1 this is -log p(z_0 | z_1)."""
    exact = process.reverse(log_onehot(z_0, process.k + 1)[..., :-1], z_t, t - 1, t)
    return kl(exact, log_previous(process, logits, z_t, t))


def with_codes(log_p: LogProbs, logits: Float[Array, "b n k"]) -> LogProbs:
    """log_p with its chance of [MASK], and the codes of softmax(logits) for the rest: how guidance
    and temperature act.
    """
    mask = log_p[..., -1:]
    return jnp.concatenate([jax.nn.log_softmax(logits) + log1m_exp(mask), mask], axis=-1)
