"""The codebook: nearest-code quantisation with a straight-through gradient, updated by moving
averages or by gradient.

Moving averages with Laplace smoothing follow van den Oord et al. 2017, appendix A.1; dead codes
restart at vectors of the current batch. Several groups of codes quantise a vector one after the
other, each what the ones before it left (residual quantisation, Lee et al. 2022).
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
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
    """The codebook's state: the code vectors, and for each code moving averages of the number and
    the sum of the vectors nearest to it. The tables of several groups follow each other.

    Fields of other types stand for arrays in trees of shapes, shardings or paths.
    """

    vectors: Float[Array, "gk z"] | Any
    count: Float[Array, " gk"] | Any
    total: Float[Array, "gk z"] | Any


def nearest(vectors: Float[Array, "k z"], z: Float[Array, "*axes z"]) -> Int[Array, "*axes"]:
    """Index of the code at the smallest Euclidean distance."""
    half_norms = 0.5 * jnp.square(vectors).sum(-1)
    products = jnp.matmul(z, vectors.T, precision="highest")
    return jnp.argmax(products - half_norms.reshape((1,) * (z.ndim - 1) + (-1,)), axis=-1)


def straight_through(
    z: Float[Array, "*axes z"], quantised: Float[Array, "*axes z"]
) -> Float[Array, "*axes z"]:
    """The value of `quantised` with the gradient of z."""
    return z + jax.lax.stop_gradient(quantised - z)


def add(groups: Sequence[Array]) -> Array:
    """The sum of the groups, in their order."""
    return functools.reduce(operator.add, groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codebook:
    """Quantisation by g groups of k codes, and the rule by which the codes are updated.

    Attributes:
      codes: k, of each group.
      groups: g, the number of codes whose sum stands for a vector. The first is the one nearest to
        the vector, each of the others the one nearest to what the sum so far leaves of it.
      width: z, the width of a code vector.
      updates: "ema" (moving averages) or "gradient" (the codebook loss; the vectors are then a
        parameter).
      decay: of the moving averages.
      smoothing: Laplace smoothing of the counts.
      restart_every: steps between restarts of dead codes; 0 for never.
      restart_below: a code is dead if its count is below this share of the mean count.
    """

    codes: int
    width: int
    groups: int = 1
    updates: str = "ema"
    decay: float = 0.99
    smoothing: float = 1e-5
    restart_every: int = 100
    restart_below: float = 0.05

    def __post_init__(self):
        if self.updates not in ("ema", "gradient"):
            raise UserError(f"codebook.updates must be 'ema' or 'gradient', got {self.updates!r}")
        if self.groups < 1:
            raise UserError(f"codebook.groups must be 1 or more, got {self.groups}")

    def init(self, key: PRNGKey, z: Vectors) -> Codes:
        """Codes at random vectors of the first batch, those of later groups at random residuals; a
        little noise separates repeated ones.
        """
        tables = []
        for group_key in self._keys(key):
            tables.append(self._draw(group_key, z))
            if len(tables) < self.groups:
                z = z - tables[-1][nearest(tables[-1], z)]
        vectors = jnp.concatenate(tables)
        return Codes(vectors=vectors, count=jnp.ones(len(vectors)), total=jnp.copy(vectors))

    def quantise(
        self, vectors: Float[Array, "gk z"], z: Float[Array, "*axes z"]
    ) -> tuple[list[Int[Array, "*axes"]], list[Float[Array, "*axes z"]]]:
        """(indices in [0, k), residuals) of each group: the vectors that the group quantises, z for
        the first. Without gradient.
        """
        z, indices, residuals = jax.lax.stop_gradient(z), [], []
        for table in self._split(jax.lax.stop_gradient(vectors)):
            residuals.append(z)
            indices.append(nearest(table, z))
            if len(indices) < self.groups:
                z = z - table[indices[-1]]
        return indices, residuals

    def look_up(
        self, vectors: Float[Array, "gk z"], indices: Sequence[Int[Array, "*axes"]]
    ) -> list[Float[Array, "*axes z"]]:
        """The code vectors of each group; `add` them for the quantised vectors. An index of k,
        [MASK], adds nothing if there are several groups.
        """
        if self.groups == 1:  # k codes, or those of a converted codec, which may be more
            return [vectors[indices[0]]]
        found = []
        for table, index in zip(self._split(vectors), indices, strict=True):
            known = (index < self.codes)[..., None]
            found.append(jnp.where(known, table[jnp.minimum(index, self.codes - 1)], 0.0))
        return found

    def _split(self, x: Float[Array, "gk ..."]) -> list[Float[Array, "k ..."]]:
        """The part of each group."""
        return [x] if self.groups == 1 else [*x.reshape(self.groups, self.codes, *x.shape[1:])]

    def _keys(self, key: PRNGKey) -> list[PRNGKey]:
        return [key] if self.groups == 1 else [*jax.random.split(key, self.groups)]

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
        z: Float[Array, "*g r z"],
        index: Int[Array, "*g r"],
        step: Int[Array, ""],
        axis: str | None,
    ) -> Codes:
        """The state after a batch of vectors z, with the indices of their nearest codes; those of
        several groups have a first axis of groups.

        `axis` names the mapped axis of devices to sum over, None if the batch is not split.
        """
        if self.groups == 1:
            return self._update_group(key, codes, z, index, step, axis)
        fields = (codes.vectors, codes.count, codes.total)
        tables = [Codes(*group) for group in zip(*map(self._split, fields))]
        updated = [
            self._update_group(group_key, table, vectors, nearest_codes, step, axis)
            for group_key, table, vectors, nearest_codes in zip(
                self._keys(key), tables, z, index, strict=True
            )
        ]
        return jax.tree.map(lambda *groups: jnp.concatenate(groups), *updated)

    def _update_group(
        self,
        key: PRNGKey,
        codes: Codes,
        z: Vectors,
        index: Int[Array, " r"],
        step: Int[Array, ""],
        axis: str | None,
    ) -> Codes:
        z = jax.lax.stop_gradient(z)
        assigned = jax.nn.one_hot(index, self.codes)
        count, total = assigned.sum(0), jnp.matmul(assigned.T, z, precision="highest")
        if axis is not None:
            count, total = jax.lax.psum((count, total), axis)
            z = jax.lax.all_gather(z, axis, tiled=True)
        blend = lambda old, new: self.decay * old + (1 - self.decay) * new
        count, total = blend(codes.count, count), blend(codes.total, total)
        vectors = codes.vectors
        if self.updates == "ema":
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
    """Share of the k codes that occur in `index`, and the perplexity exp(entropy) of their
    frequencies; with `axis`, over all devices of that mapped axis.
    """
    count = jnp.bincount(index, length=k)
    count = count if axis is None else jax.lax.psum(count, axis)
    p = count / count.sum()
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))
    return {"codes_in_use": (p > 0).mean(), "perplexity": jnp.exp(entropy)}
