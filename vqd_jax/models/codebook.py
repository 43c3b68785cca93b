"""The codebook: nearest-code quantisation with a straight-through gradient, learned by moving
averages or by gradient.

Moving averages with Laplace smoothing follow van den Oord et al. 2017, appendix A.1; a code that
too few vectors choose is moved onto a vector of the current batch.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import PRNGKey

Vectors = Float[Array, "r z"]


@flax.struct.dataclass
class Codes:
    """The codebook's state: vectors (k, z), and moving averages of how many vectors chose each (k,)
    and of their sum (k, z).
    """

    vectors: Any
    count: Any
    total: Any


def nearest(vectors: Float[Array, "k z"], z: Float[Array, "*axes z"]) -> Int[Array, "*axes"]:
    """Index of the code at the smallest Euclidean distance."""
    return jnp.argmax(
        z @ vectors.T - 0.5 * jnp.square(vectors).sum(-1).reshape((1,) * (z.ndim - 1) + (-1,)),
        axis=-1,
    )


def straight_through(
    z: Float[Array, "*axes z"], quantised: Float[Array, "*axes z"]
) -> Float[Array, "*axes z"]:
    """The value of `quantised` with the gradient of z."""
    return z + jax.lax.stop_gradient(quantised - z)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codebook:
    """How k codes are learned.

    Attributes:
      update: "ema" (moving averages) or "gradient" (the codebook loss; vectors are then a
      parameter). decay, smoothing: of the moving averages.
      restart_every: steps between restarts of dead codes; 0 for never.
      restart_below: a code is dead when it is chosen less often than this share of an even split.
    """

    codes: int
    width: int
    update: str = "ema"
    decay: float = 0.99
    smoothing: float = 1e-5
    restart_every: int = 100
    restart_below: float = 0.05

    def __post_init__(self):
        if self.update not in ("ema", "gradient"):
            raise UserError(f"codebook.update must be 'ema' or 'gradient', got {self.update!r}")

    def init(self, key: PRNGKey, z: Vectors) -> Codes:
        """Codes placed on random vectors of the first batch; a little noise separates repeated
        ones.
        """
        vectors = self._draw(key, z)
        return Codes(vectors=vectors, count=jnp.ones(self.codes), total=jnp.copy(vectors))

    def _draw(self, key: PRNGKey, z: Vectors) -> Float[Array, "k z"]:
        pick_key, noise_key = jax.random.split(key)
        rows = jax.random.choice(
            pick_key, z.shape[0], (self.codes,), replace=z.shape[0] < self.codes
        )
        return z[rows] + 1e-3 * z.std() * jax.random.normal(noise_key, (self.codes, self.width))

    def update_codes(
        self,
        key: PRNGKey,
        codes: Codes,
        z: Vectors,
        index: Int[Array, " r"],
        step: Int[Array, ""],
        axis: str | None,
    ) -> Codes:
        """The next state after a batch of vectors z with their nearest codes; `axis` names the
        devices to sum over.
        """
        z = jax.lax.stop_gradient(z)
        chosen = jax.nn.one_hot(index, self.codes, dtype=z.dtype)
        count, total = chosen.sum(0), chosen.T @ z
        if axis is not None:
            count, total = jax.lax.psum((count, total), axis)
            z = jax.lax.all_gather(z, axis, tiled=True)
        blend = lambda old, new: self.decay * old + (1 - self.decay) * new
        count, total = blend(codes.count, count), blend(codes.total, total)
        vectors = codes.vectors
        if self.update == "ema":
            n = count.sum()
            smooth = (count + self.smoothing) / (n + self.codes * self.smoothing) * n
            vectors = total / smooth[:, None]
        if self.restart_every:
            due = step % self.restart_every == self.restart_every - 1
            dead = due & (count < self.restart_below * count.mean())
            fresh = self._draw(key, z)
            vectors = jnp.where(dead[:, None], fresh, vectors)
            count = jnp.where(dead, count.mean(), count)
            total = jnp.where(dead[:, None], fresh * count[:, None], total)
        return Codes(vectors=vectors, count=count, total=total)


def usage(index: Int[Array, " r"], k: int, axis: str | None = None) -> dict[str, Float[Array, ""]]:
    """Share of the k codes that occur in `index`, of all devices of `axis`, and the perplexity
    exp(entropy) of their frequencies.
    """
    count = jnp.bincount(index, length=k)
    count = count if axis is None else jax.lax.psum(count, axis)
    p = count / count.sum()
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))
    return {"codes_in_use": (p > 0).mean(), "perplexity": jnp.exp(entropy)}
