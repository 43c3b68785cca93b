"""Tokens are computed once for a codec and a data set; a killed run leaves no file that looks
finished.
"""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from helpers import ROOT
from helpers.token_images import CODEC, COUNT, Encode, Images
from vqd_jax.data.token_cache import cached_tokens, encode_records

WANT = np.repeat(np.arange(COUNT)[:, None], 2, 1)


def test_every_image_has_its_row_and_nothing_is_computed_twice(tmp_path):
    encode = Encode()
    tokens = cached_tokens(tmp_path / "cache", Images(), CODEC, encode)
    np.testing.assert_array_equal(tokens, WANT)
    assert tokens.dtype == np.int32 and encode.calls == 2
    again = cached_tokens(tmp_path / "cache", Images(), CODEC, encode)
    np.testing.assert_array_equal(again, WANT)
    assert encode.calls == 2 and len(list((tmp_path / "cache").glob("tokens-*"))) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: b"x" * len(content),
        lambda content: content[:30],
        lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],  # one token
        lambda content: content[:-32],  # as earlier versions wrote it
    ],
)
def test_a_damaged_file_is_written_again(tmp_path, damage, capsys):
    encode = Encode()
    cached_tokens(tmp_path, Images(), CODEC, encode)
    (file,) = tmp_path.glob("*.npy")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    np.testing.assert_array_equal(cached_tokens(tmp_path, Images(), CODEC, encode), WANT)
    assert encode.calls == 4 and file.read_bytes() == whole
    assert f"{file} is damaged or of an earlier version: images are" in capsys.readouterr().out


def test_every_flipped_bit_is_found(tmp_path):
    encode = Encode()
    cached_tokens(tmp_path, Images(), CODEC, encode)
    (file,) = tmp_path.glob("*.npy")
    whole = file.read_bytes()
    for i in range(0, 8 * len(whole), 8 * len(whole) // 20):
        flipped = bytearray(whole)
        flipped[i // 8] ^= 1 << i % 8
        file.write_bytes(flipped)
        np.testing.assert_array_equal(cached_tokens(tmp_path, Images(), CODEC, encode), WANT)
        assert file.read_bytes() == whole


@pytest.mark.parametrize("offset, dtype", [(0, np.uint16), (2**16, np.int32)])
def test_tokens_take_two_bytes_if_they_fit(tmp_path, offset, dtype):
    encode = Encode()
    larger = lambda images: encode(images) + offset
    for _ in range(2):  # written, and read
        tokens = cached_tokens(tmp_path, Images(), CODEC, larger)
        np.testing.assert_array_equal(tokens, WANT + offset)
        assert tokens.dtype == np.int32 and encode.calls == 2
    (file,) = tmp_path.glob("*.npy")
    assert np.load(file).dtype == dtype


def test_tokens_of_some_images_are_their_rows():
    encode = Encode()
    tokens = encode_records(Images(), [70, 3, 3, 5], encode)
    assert list(tokens) == [3, 5, 70] and encode.calls == 1
    for i, row in tokens.items():
        np.testing.assert_array_equal(row, WANT[i])
    assert encode_records(Images(), [], encode) == {} and encode.calls == 1


@pytest.mark.parametrize("change", ["data", "codes", "kernel"])
def test_another_codec_or_data_set_is_encoded_anew(change, tmp_path):
    encode = Encode()
    cached_tokens(tmp_path, Images(), CODEC, encode)
    images = Images(fingerprint="others" if change == "data" else "images")
    codec = {
        "codes": CODEC["codes"] + (change == "codes"),
        "vqvae": {"kernel": CODEC["vqvae"]["kernel"] * (1 if change != "kernel" else 1 + 1e-7)},
    }
    cached_tokens(tmp_path, images, codec, encode)
    assert encode.calls == 4
    cached_tokens(tmp_path, Images(), CODEC, encode)  # and the first ones are still there
    assert encode.calls == 4


def test_an_interrupted_computation_leaves_nothing(tmp_path):
    class Interrupted(Encode):
        def __call__(self, images):
            if self.calls == 1:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        cached_tokens(tmp_path / "cache", Images(), CODEC, Interrupted())
    assert not list(tmp_path.rglob("*.npy"))
    np.testing.assert_array_equal(
        cached_tokens(tmp_path / "cache", Images(), CODEC, Encode()), WANT
    )


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.token_images import CODEC, Encode, Images
from vqd_jax.data.token_cache import cached_tokens

def half(path, content):
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

Path.write_bytes = half
cached_tokens(Path(sys.argv[2]), Images(), CODEC, Encode())
"""


def test_a_kill_while_writing_is_never_taken_for_tokens(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(ROOT / "tests"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert any(p.stat().st_size for p in tmp_path.iterdir()) and not list(tmp_path.glob("*.npy"))
    np.testing.assert_array_equal(cached_tokens(tmp_path, Images(), CODEC, Encode()), WANT)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".npy"]
