"""Classes by name and number, and models that read nothing."""

import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.data.text.labels import Classes, Nothing
from vqd_jax.data.text.load import Tokenizer, load_tokenizer

BIRDS = Classes(["Albatross", "crow", "", "crow"])


def test_names_and_numbers():
    np.testing.assert_array_equal(BIRDS(["albatross", "3", " Crow ", "2"]), [[0], [3], [1], [2]])
    assert BIRDS.vocabulary == 4 and BIRDS.length == 1 and BIRDS([]).shape == (0, 1)
    np.testing.assert_array_equal(load_tokenizer(BIRDS.to_json())(["albatross", "3"]), [[0], [3]])


@pytest.mark.parametrize("caption", ["4", "-1", "eagle", "", "1.0"])
def test_unknown_classes_are_one_sentence(caption):
    with pytest.raises(UserError, match="a number from 0 to 3, or a name such as 'Albatross'"):
        BIRDS([caption])
    with pytest.raises(UserError, match=r"a number from 0 to 1; got"):
        Classes(["", ""])([caption if caption != "1.0" else "2"])


def test_no_classes_are_refused():
    with pytest.raises(UserError, match="at least one class"):
        Classes([])


def test_nothing_is_read():
    nothing = load_tokenizer(Nothing().to_json())
    assert nothing(["a", "b"]).shape == (2, 0) and nothing.length == 0
    assert isinstance(nothing, Tokenizer) and isinstance(BIRDS, Tokenizer)
