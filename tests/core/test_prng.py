"""Random numbers do not depend on the environment."""

import jax
import numpy as np
import pytest

from vqd_jax.core.prng import root_key
from vqd_jax.stages.sampling import image_keys


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_the_generator_is_the_same_whatever_the_default_is(implementation):
    with jax.default_prng_impl(implementation):
        key, keys = root_key(3), image_keys(3, 5, 2)
        drawn = [jax.random.normal(k, (4,)) for k in keys]
    assert jax.random.key_impl(key) == jax.random.key_impl(keys) == "threefry2x32"
    np.testing.assert_array_equal(jax.random.key_data(key), [0, 3])
    for i, row in enumerate(drawn):
        alone = jax.random.normal(jax.random.fold_in(jax.random.key(3), 5 + i), (4,))
        np.testing.assert_array_equal(row, alone)
