"""The chunks of PNG files, read without decoding the picture."""

from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
AROUND = 12  # bytes of a chunk beside its data: length, kind and checksum


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(kind, data, the whole chunk) of each chunk of a PNG file; the last one may be cut."""
    at = len(SIGNATURE)
    while len(chunk := content[at : at + AROUND + int.from_bytes(content[at : at + 4])]) >= AROUND:
        at += len(chunk)
        yield chunk[4:8], chunk[8:-4], chunk


def text(content: bytes, key: str) -> str | None:
    """The text that is stored under a key, uncompressed and in UTF-8 (an iTXt chunk)."""
    for kind, data, chunk in chunks(content):
        name, _, rest = data.partition(b"\0")
        whole = len(chunk) == AROUND + int.from_bytes(chunk[:4])
        # after the name: uncompressed, no method, no language, no translated name
        if kind == b"iTXt" and name.decode("latin-1") == key and rest[:4] == bytes(4) and whole:
            return rest[4:].decode()
    return None
