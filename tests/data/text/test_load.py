"""Tokenizers come back from JSON by their kind, and looking for one is cheap."""

import subprocess
import sys

import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.data.text.load import load_tokenizer


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "{}", '{"kind": "words"}', '{"kind": ["clip"]}']
)
def test_unknown_json_is_one_sentence(text):
    with pytest.raises(UserError, match="byte-pair (or|and) clip"):
        load_tokenizer(text)


def test_importing_it_loads_no_heavy_library():
    script = (
        "import sys, vqd_jax.data.text.load; print({'jax', 'torch', 'transformers'} & "
        "{*sys.modules})"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert fresh.stdout.strip() == "set()"
