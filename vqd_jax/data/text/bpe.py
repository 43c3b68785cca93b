"""A byte-pair tokenizer trained on the captions of a data set (Sennrich et al. 2016, on bytes as in
GPT-2).

It encodes any string. The ids 0, 1 and 2 are padding, start and end; the 256 bytes and the learned
merges follow.
"""

import json
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vqd_jax.core.errors import UserError

KIND = "byte-pair"
PAD, START, END = 0, 1, 2
RESERVED = 3  # kept outside the library's vocabulary, so that no caption can spell a special token
SMALLEST = RESERVED + 256
SPACE = "\u0120"  # the library's symbol for it, at the start of a word's first token
# characters of a caption used for training, whose time grows with the square of a word's length
TRAINED_ON = 10_000


class BytePair:
    """Maps captions to ids (b, length): start, tokens, end, padding. Long captions are truncated
    before the end.
    """

    pad = PAD

    def __init__(self, merges: Tokenizer, *, length: int):
        if length < 3:
            raise UserError(
                f"the text length must be at least 3, for start, a token and end; got {length}"
            )
        self.length = length
        self._merges = merges

    @classmethod
    def train(
        cls, captions: Iterable[str], *, vocabulary: int = 1024, length: int = 16
    ) -> "BytePair":
        """Learns merges from captions, whatever their order. Few captions may give fewer ids than
        `vocabulary`.
        """
        if vocabulary < SMALLEST:
            raise UserError(
                f"the text vocabulary must have at least {SMALLEST} ids for byte pairs; got "
                f"{vocabulary}"
            )
        captions = sorted(valid_unicode(caption)[:TRAINED_ON] for caption in captions)
        if not captions:
            raise UserError(
                "there are no captions to train a tokenizer on; the data must have at least one"
            )
        merges = Tokenizer(models.BPE())
        merges.normalizer = normalizers.Sequence(
            [
                normalizers.NFKC(),
                normalizers.Lowercase(),
                normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "),
                normalizers.Strip(),
            ]
        )
        merges.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        merges.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        merges.train_from_iterator(
            captions,
            trainers.BpeTrainer(
                vocab_size=vocabulary - RESERVED, initial_alphabet=alphabet, show_progress=False
            ),
        )
        return cls(merges, length=length)

    @property
    def vocabulary(self) -> int:
        return RESERVED + self._merges.get_vocab_size()

    def __call__(self, captions: Sequence[str]) -> Int[np.ndarray, "b m"]:
        if isinstance(captions, str):
            raise UserError("the tokenizer takes a list of captions; got one string")
        ids = np.full((len(captions), self.length), PAD, np.int32)
        encoded = self._merges.encode_batch_fast([valid_unicode(caption) for caption in captions])
        for row, caption in zip(ids, encoded, strict=True):
            tokens = [RESERVED + token for token in caption.ids[: self.length - 2]]
            row[: len(tokens) + 2] = [START, *tokens, END]
        return ids

    def unread(self, captions: Sequence[str]) -> list[str]:
        """The normalised end of each caption that its row of ids leaves out; "" if it fits."""
        encoded = self._merges.encode_batch_fast([valid_unicode(caption) for caption in captions])
        return [self._merges.decode(caption.ids[self.length - 2 :]).strip() for caption in encoded]

    def words(self, caption: str) -> list[tuple[str, list[int]]]:
        """The normalised words of the caption, each with the positions of its tokens in the row of
        ids, without truncated words.
        """
        encoded, out = self._merges.encode(valid_unicode(caption)), []
        for place, (token, piece) in enumerate(
            zip(encoded.ids[: self.length - 2], encoded.tokens), start=1
        ):
            if piece.startswith(SPACE) or not out:
                out.append([])
            out[-1].append((place, token))
        return [
            (
                self._merges.decode([token for _, token in word]).strip(),
                [place for place, _ in word],
            )
            for word in out
        ]

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " m"]) -> str:
        """The normalised text of a row of ids, without special tokens; an incomplete character
        becomes U+FFFD.
        """
        return self._merges.decode(
            [int(token) - RESERVED for token in ids if token >= RESERVED]
        ).strip()

    def to_json(self) -> str:
        return json.dumps(
            {"kind": KIND, "length": self.length, "merges": json.loads(self._merges.to_str())}
        )

    @classmethod
    def from_json(cls, text: str) -> "BytePair":
        try:
            stored = json.loads(text)
            merges, length = Tokenizer.from_str(json.dumps(stored["merges"])), int(stored["length"])
        except Exception as error:  # the library raises a bare Exception for a damaged file
            raise UserError(
                f"the stored {KIND} tokenizer is not in the format of `to_json`: {error}"
            ) from error
        return cls(merges, length=length)


def valid_unicode(caption: str) -> str:
    """Joins surrogate pairs, and replaces lone surrogates (undecodable bytes of a command line) by
    U+FFFD.
    """
    return caption.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
