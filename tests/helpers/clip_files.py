"""Small files of CLIP's tokenizer."""

import itertools
import json

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAIRS = ["".join(pair) for pair in itertools.product(LETTERS, LETTERS)]
MERGES = [
    *zip("".join(PAIRS)[::2], "".join(PAIRS)[1::2], strict=True),  # a b
    *((pair, letter + "</w>") for pair in PAIRS for letter in LETTERS),  # ab c</w>
    *itertools.product(PAIRS, PAIRS),  # ab cd
][:48894]
BYTES = [
    *map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)]),
    *map(chr, range(256, 324)),
]
VOCABULARY = {
    name: i
    for i, name in enumerate(
        [
            *BYTES,
            *(b + "</w>" for b in BYTES),
            *map("".join, MERGES),
            "<|startoftext|>",
            "<|endoftext|>",
        ]
    )
}


def write_folder(folder, vocabulary, merges):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *map(" ".join, merges), ""]), "utf-8"
    )
    return folder
