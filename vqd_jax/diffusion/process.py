"""Mask-and-replace diffusion over k codes and one absorbing [MASK] state.

Every kernel here has the form: a code survives with probability alpha, is replaced by
each of the k codes with probability beta, or is masked with probability gamma, where
alpha + k * beta + gamma = 1; [MASK] stays [MASK]. The family is closed under
composition, so q(z_t | z_s) for any s < t is three scalars, never a matrix.
`uniform` (gamma = 0) and `absorbing` (beta = 0) are special cases.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqd_jax.core.shapes import Logits, LogProbs, PRNGKey, Times, Tokens

LOG_ZERO = -1e4  # finite, so that LOG_ZERO - LOG_ZERO is 0 and not NaN

Scalars = Float[Array, "b 1 1"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """q(z_t | z_s) as the log-probability of each of its three outcomes."""

    log_keep: Scalars
    log_replace: Scalars
    log_mask: Scalars

    def push(self, log_p: LogProbs) -> LogProbs:
        """Distribution of z_t when z_s ~ exp(log_p), which need not be normalised."""
        codes, mask = log_p[..., :-1], log_p[..., -1:]
        mass = jax.nn.logsumexp(codes, axis=-1, keepdims=True)
        return jnp.concatenate(
            [
                jnp.logaddexp(self.log_keep + codes, self.log_replace + mass),
                jnp.logaddexp(mask, self.log_mask + mass),
            ],
            axis=-1,
        )

    def likelihood(self, z_t: Tokens, v: int) -> LogProbs:
        """log q(z_t | z_s = j) as a function of j (not a distribution over j)."""
        same = jnp.arange(v)[None, None, :] == z_t[..., None]
        stay = jnp.logaddexp(self.log_keep, self.log_replace)
        from_code = jnp.where(same, stay, self.log_replace)
        from_code = from_code.at[..., -1].set(LOG_ZERO)  # [MASK] never becomes a code
        from_mask = jnp.where(same, 0.0, self.log_mask)
        return jnp.where(z_t[..., None] == v - 1, from_mask, from_code)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskAndReplace:
    """The forward process, as two independent fates of a token, indexed by t in {0..T}.

    Kept as two fates and not as (alpha, beta, gamma) because beta would come from a
    difference, which float32 does not make exactly 0 when nothing is ever replaced.

    Attributes:
      unmasked: P(not yet masked at t); falls from 1.
      intact: P(not yet replaced at t | not masked); falls from 1.
      k: number of codes.
    """

    unmasked: tuple[float, ...]
    intact: tuple[float, ...]
    k: int

    def __post_init__(self):
        for name, p in (("unmasked", self.unmasked), ("intact", self.intact)):
            if p[0] != 1 or min(p) < 0 or (np.diff(p) > 0).any():
                raise ValueError(f"{name} must be probabilities that fall from 1, got {p}")

    @property
    def T(self) -> int:
        return len(self.unmasked) - 1

    def between(self, s: Times, t: Times) -> Kernel:
        """q(z_t | z_s) for s <= t."""
        change = lambda p: (table := log_table(p))[t] - table[s]
        d_unmasked, d_intact = change(self.unmasked), change(self.intact)
        column = lambda x: jnp.maximum(x, LOG_ZERO)[:, None, None]
        return Kernel(
            log_keep=column(d_unmasked + d_intact),
            log_replace=column(d_unmasked + log1m_exp(d_intact) - np.log(self.k)),
            log_mask=column(log1m_exp(d_unmasked)),
        )

    def diffuse(self, key: PRNGKey, z_0: Tokens, t: Times) -> Tokens:
        """Samples z_t ~ q(z_t | z_0)."""
        return self.move(key, z_0, self.between(jnp.zeros_like(t), t))

    def move(self, key: PRNGKey, z: Tokens, kernel: Kernel) -> Tokens:
        """What the kernel makes of codes."""
        fate_key, code_key = jax.random.split(key)
        replace, mask = (
            self.k * jnp.exp(kernel.log_replace)[..., 0],
            jnp.exp(kernel.log_mask)[..., 0],
        )
        fate = jax.random.uniform(
            fate_key, z.shape
        )  # in this order, what has probability 0 never happens
        code = jax.random.randint(code_key, z.shape, 0, self.k, z.dtype)
        return jnp.where(fate < replace, code, jnp.where(fate < replace + mask, self.k, z))

    def reverse(self, logits: Logits, z_t: Tokens, s: Times, t: Times) -> LogProbs:
        """log p(z_s | z_t) = log sum_x q(z_s | z_t, x) p(x | z_t), x over codes.

        s = t - 1 is the ancestral step; any s < t is fast inference.
        """
        v, zero = self.k + 1, jnp.zeros_like(t)
        log_x = jnp.pad(
            jax.nn.log_softmax(logits), ((0, 0), (0, 0), (0, 1)), constant_values=LOG_ZERO
        )
        evidence = self.between(zero, t).likelihood(z_t, v)
        weight = jnp.where(evidence > LOG_ZERO / 2, log_x - evidence, LOG_ZERO)
        return jax.nn.log_softmax(
            self.between(s, t).likelihood(z_t, v) + self.between(zero, s).push(weight)
        )


def log_onehot(z: Tokens, v: int) -> LogProbs:
    """Log of a one-hot encoding, with LOG_ZERO for log 0."""
    return jnp.where(jnp.arange(v)[None, None, :] == z[..., None], 0.0, LOG_ZERO)


def log_table(p: tuple[float, ...]) -> Float[Array, " t"]:
    """log p, taken in float64 so that log(1 - 1e-6) keeps its digits in float32 (float64 where JAX
    has it on).
    """
    with np.errstate(divide="ignore"):
        return jnp.asarray(
            np.maximum(np.log(np.asarray(p, np.float64)), LOG_ZERO), jnp.result_type(float)
        )


def log1m_exp(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """log(1 - exp(x)) for x <= 0, and LOG_ZERO at x = 0."""
    safe = jnp.where(x < 0, x, -1.0)
    return jnp.where(x < 0, jnp.log(-jnp.expm1(safe)), LOG_ZERO)
