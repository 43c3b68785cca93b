"""The keys of random numbers."""

import jax

from vqd_jax.core.shapes import PRNGKey


def root_key(seed: int) -> PRNGKey:
    """A key for the generator threefry2x32, whatever JAX_DEFAULT_PRNG_IMPL says: with another, such
    as rbg, what is drawn for an image would depend on the other images of its batch.
    """
    return jax.random.key(seed, impl="threefry2x32")
