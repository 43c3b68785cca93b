"""CLIP's byte-pair tokenizer with its published vocabulary, in the layout of VQ-Diffusion's text
tower: start, tokens, end, then zeros (the id of "!") up to 77 ids.
"""

import base64
import gzip
import html
import io
import json
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from vqd_jax.core.errors import UserError
from vqd_jax.core.extras import import_extra
from vqd_jax.core.text_files import read_json, read_text, shown
from vqd_jax.data.text.bpe import valid_unicode

KIND = "clip"
VOCABULARY = 49408
PAD, START, END = 0, 49406, 49407
MERGES = VOCABULARY - 2 - 2 * 256  # two special tokens; 256 bytes, inside and at the end of a word
TEXT = 2**24  # bytes of the merges; CLIP's have 3 MB with those that it does not use
ACCEPTED = (
    "a folder with CLIP's vocab.json and merges.txt, or OpenAI's bpe_simple_vocab_16e6.txt.gz"
)

# CLIP cleans captions with `ftfy`. On correctly decoded text it straightens quotes, expands
# ligatures and full-width characters and drops control characters, as PLAIN does; its repair of
# wrongly decoded text is left out.
LIGATURES = [
    0x132,
    0x133,
    0x149,
    *range(0x1C4, 0x1CD),
    *range(0x1F1, 0x1F4),
    *range(0xFB00, 0xFB07),
]
WIDE = [0x3000, *range(0xFF01, 0xFFF0)]
CONTROLS = [
    *range(9),
    0x0B,
    *range(0x0E, 0x20),
    0x7F,
    *range(0x206A, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFD),
]
PLAIN = (
    {code: unicodedata.normalize("NFKC", chr(code)) for code in LIGATURES + WIDE}
    | dict.fromkeys([0x02BC, *range(0x2018, 0x201C)], "'")
    | dict.fromkeys(range(0x201C, 0x2020), '"')
    | dict.fromkeys(CONTROLS)
    | {0x149: "'n"}
)


class ClipTokenizer:
    """Maps captions to ids (b, length) of CLIP's 49,408 tokens. Long captions are truncated before
    the end.
    """

    pad = PAD
    vocabulary = VOCABULARY

    def __init__(
        self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], *, length: int = 77
    ):
        if length < 3:
            raise UserError(
                f"the text length must be at least 3, for start, a token and end; got {length}"
            )
        library = import_extra("transformers", "clip", "CLIP's tokenizer")
        merges = [tuple(merge) for merge in merges]
        _check(vocabulary, merges)
        self.length = length
        self._vocabulary, self._merges = vocabulary, merges
        self._tokenizer = library.CLIPTokenizer(vocab=vocabulary, merges=merges)
        if len(self._tokenizer) != VOCABULARY:  # transformers silently falls back to two tokens
            raise UserError(
                f"CLIP's tokenizer loaded {len(self._tokenizer)} tokens; it must have {VOCABULARY}"
            )

    @classmethod
    def load(cls, path: str | Path, *, length: int = 77) -> "ClipTokenizer":
        """Loads a folder with `vocab.json` and `merges.txt`, or OpenAI's
        `bpe_simple_vocab_16e6.txt.gz`.
        """
        path = Path(path)
        try:
            if path.is_dir():
                tokens = read_json(path / "vocab.json").items()
                vocabulary = {name: token for name, token in tokens if isinstance(token, int)}
                merges = _read_merges(read_text(path / "merges.txt", TEXT))
            else:
                merges = _read_merges(_unzip(path))
                vocabulary = _order(merges)
        except UserError as error:
            raise UserError(f"{error}; CLIP's tokenizer loads from {ACCEPTED}") from error
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(
                f"CLIP's tokenizer cannot read {path} ({error}); it loads from {ACCEPTED}"
            ) from error
        try:
            return cls(vocabulary, merges, length=length)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Creates a folder that `load` reads, and that transformers reads with the same padding."""
        folder.mkdir()
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.length,
            "pad_token": "!",
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
        }
        for name, value in (("vocab", self._vocabulary), ("tokenizer_config", settings)):
            (folder / f"{name}.json").write_text(
                json.dumps(value, ensure_ascii=False) + "\n", "utf-8"
            )
        (folder / "merges.txt").write_text(
            "\n".join(["#version: 0.2", *map(" ".join, self._merges), ""]), "utf-8"
        )

    def __call__(self, captions: Sequence[str]) -> Int[np.ndarray, "b m"]:
        if isinstance(captions, str):
            raise UserError("the tokenizer takes a list of captions; got one string")
        ids = np.full((len(captions), self.length), PAD, np.int32)
        if len(captions) == 0:
            return ids
        encoded = self._tokenizer(
            [clean(caption) for caption in captions], add_special_tokens=False
        )["input_ids"]
        for row, tokens in zip(ids, encoded, strict=True):
            tokens = tokens[: self.length - 2]
            row[: len(tokens) + 2] = [START, *tokens, END]
        return ids

    def unread(self, captions: Sequence[str]) -> list[str]:
        """The cleaned end of each caption that its row of ids leaves out; "" if it fits."""
        if len(captions) == 0:
            return []
        cleaned = [clean(caption) for caption in captions]
        encoded = self._tokenizer(cleaned, add_special_tokens=False)["input_ids"]
        return [self._tokenizer.decode(tokens[self.length - 2 :]).strip() for tokens in encoded]

    def words(self, caption: str) -> list[tuple[str, list[int]]]:
        """The cleaned words of the caption, each with the positions of its tokens in the row of
        ids, without truncated words.
        """
        ids, out, ended = self([caption])[0].tolist(), [], True
        for place, token in enumerate(ids[1 : ids.index(END)], start=1):
            if ended:
                out.append([])
            out[-1].append((place, token))
            ended = self._tokenizer.convert_ids_to_tokens(token).endswith("</w>")
        return [
            (
                self._tokenizer.decode([token for _, token in word]).strip(),
                [place for place, _ in word],
            )
            for word in out
        ]

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " m"]) -> str:
        """The cleaned text of a row of ids, from start to end, with a space after every word."""
        ids = [int(token) for token in ids]
        return self._tokenizer.decode(ids[1 : ids.index(END)] if END in ids else ids[1:])

    def to_json(self) -> str:
        """JSON with the full vocabulary (about 1 MB), so that a checkpoint needs no other file."""
        names = sorted(self._vocabulary, key=self._vocabulary.get)
        lines = "\n".join([*names, *map(" ".join, self._merges)])
        packed = base64.b64encode(gzip.compress(lines.encode(), mtime=0)).decode()
        return json.dumps({"kind": KIND, "length": self.length, "vocabulary_and_merges": packed})

    @classmethod
    def from_json(cls, text: str) -> "ClipTokenizer":
        try:
            stored = json.loads(text)
            packed = base64.b64decode(stored["vocabulary_and_merges"])
            lines = _unzip(io.BytesIO(packed)).split("\n")
            length = int(stored["length"])
        except (OSError, EOFError, ValueError, TypeError, KeyError, zlib.error) as error:
            raise UserError(
                f"the stored {KIND} tokenizer is not in the format of `to_json`: {error}"
            ) from error
        vocabulary = {name: i for i, name in enumerate(lines[:VOCABULARY])}
        return cls(
            vocabulary, [tuple(line.split(" ")) for line in lines[VOCABULARY:]], length=length
        )


def clean(caption: str) -> str:
    """CLIP's cleaning: HTML entities undone twice, plain characters, single spaces, lower case."""
    caption = html.unescape(html.unescape(valid_unicode(caption)))
    return " ".join(unicodedata.normalize("NFC", caption.translate(PLAIN)).split()).lower()


def _unzip(file: Path | io.BytesIO) -> str:
    with gzip.open(file) as packed:
        content = packed.read(TEXT + 1)
    if len(content) > TEXT:
        raise ValueError(f"more than {TEXT:,} bytes")
    return content.decode()


def _read_merges(text: str) -> list[tuple[str, str]]:
    """The merges, one a line, most frequent first; OpenAI's file has more than CLIP uses."""
    lines = text.split("\n")
    if lines[0].startswith(("#version", '"bpe_simple_vocab')):
        lines = lines[1:]
    return [tuple(line.split()) for line in lines[:MERGES] if line.strip()]


def _order(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Token → id in CLIP's order: the 256 bytes as printable characters, the same at the end of a
    word, the merges, start, end.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    characters = [chr(byte) for byte in printable] + [
        chr(256 + i) for i in range(256 - len(printable))
    ]
    ends = [character + "</w>" for character in characters]
    names = [*characters, *ends, *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return {name: i for i, name in enumerate(names)}


def _check(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Raises a UserError for a wrong vocabulary, which transformers would accept or refuse with a
    bare Exception.
    """
    if len(vocabulary) != VOCABULARY or set(vocabulary.values()) != set(range(VOCABULARY)):
        raise UserError(
            f"this vocabulary has {len(vocabulary)} tokens; CLIP's has the ids 0 to "
            f"{VOCABULARY - 1}"
        )
    special = {"!": PAD, "<|startoftext|>": START, "<|endoftext|>": END}
    if any(vocabulary.get(name) != token for name, token in special.items()):
        raise UserError(f"this vocabulary is not CLIP's, which has the ids {special}")
    if len(merges) != MERGES:
        raise UserError(f"this tokenizer has {len(merges)} merges; CLIP's has {MERGES}")
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            raise UserError(
                f"the merge {shown(' '.join(merge))} does not fit this vocabulary; take both from "
                "one model"
            )
