"""What Weights & Biases keeps of an offline run: a file in LevelDB's format for logs, of protobufs."""

import json
import struct

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7  # bytes


def runs(folder):
    """The folders of the offline runs of a stage, oldest first."""
    found = (folder / "wandb").glob("offline-run-*")
    return sorted(found, key=lambda run: (run / "logs" / "debug.log").stat().st_mtime_ns)


def records(run):
    """Every record in the folder of an offline run."""
    (file,) = run.glob("*.wandb")
    data, whole = file.read_bytes(), b""
    assert data[:4] == b":W&B"
    at = HEADER  # of the file, which counts to the first block
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # all of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


def history(run):
    """The logged values, as a dict for each line, without what W&B adds."""
    for record in records(run):
        if record.HasField("history"):
            line = {}
            for item in record.history.item:
                *path, key = item.nested_key or [item.key]
                inside = line
                for name in path:
                    inside = inside.setdefault(name, {})
                inside[key] = json.loads(item.value_json)
            yield {name: value for name, value in line.items() if not name.startswith("_")}
