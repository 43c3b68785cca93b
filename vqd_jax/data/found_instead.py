"""Looks at what lies in a folder that lacks what a data set needs, to say it in the message."""

import contextlib
import difflib
import itertools
import os
import pathlib
from collections.abc import Collection, Iterable

from vqd_jax.core.errors import printable

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
TABLES = (".json", ".jsonl", ".csv", ".tsv", ".xlsx", ".parquet", ".arrow", ".pickle", ".mat")
MOST = 1000  # entries of a folder that are looked at
CLOSE = 0.6  # the least similarity of names, of at most 1
SHORT = 3  # letters of a name that may be a part of another


def found_instead(root: pathlib.Path, missing: Iterable[str], layout: Collection[str] = ()) -> str:
    """What there is in place of the `missing` entries of the folder `root`, in brackets after a
    blank; "" if nothing resembles them. `layout` are all entries that the folder should have.

    That is a folder in it that has one of them, or the folder above if that has the layout; else an
    archive that is not unpacked or an entry with a similar name; else any archive or table.
    """
    missing, names = [*missing], entries(root)
    for folder in (root / name for name in names):
        for name in missing:
            if (folder / name).exists():
                return f" ({printable(str(folder))} has {name}: name that folder)"
    above = root.absolute().parent
    if len(there := [name for name in layout if (above / name).exists()]) > 1:
        return f" ({printable(str(above))} has {' and '.join(there)}: name that folder)"
    packed = [name for name in names if name.lower().endswith(ARCHIVES)]
    others = [name for name in names if name not in (*packed, *layout)]
    tables = [name for name in others if name.lower().endswith(TABLES)]
    found = (
        _similar(packed, missing) or _similar(others, missing) or next(iter(packed + tables), "")
    )
    if not found:
        return ""
    return f" (there is {printable(found)}{', which is not unpacked' * (found in packed)})"


def beside(path: pathlib.Path) -> str:
    """What there is in place of a folder that does not exist, in brackets after a blank: a file of
    that name, or an entry beside it with a similar name; "" if there is neither.
    """
    close = difflib.get_close_matches(path.name, entries(path.parent), n=1)
    name = path.name if path.is_file() else next(iter(close), "")
    if not name:
        return ""
    packed, file = name.lower().endswith(ARCHIVES), path.with_name(name).is_file()
    kind = ", an archive that is not unpacked" if packed else ", a file" if file else ""
    return f" (there is {printable(name)}{kind})"


def entries(root: pathlib.Path) -> list[str]:
    """Names in a folder, without hidden ones, sorted; [] if it cannot be read."""
    with contextlib.suppress(OSError), os.scandir(root) as found:
        some = itertools.islice(found, MOST)
        return sorted(entry.name for entry in some if not entry.name.startswith("."))
    return []


def _similar(names: list[str], wanted: list[str]) -> str:
    """The name that is most similar to a wanted one, without endings; "" if none is."""
    stem = lambda name: name.lower().rpartition("/")[2].partition(".")[0]
    stems = {stem(name): name for name in reversed(names)}
    for goal in map(stem, wanted):
        close = difflib.get_close_matches(goal, stems, n=1, cutoff=CLOSE)
        close += [own for own in stems if len(own) >= SHORT and (own in goal or goal in own)]
        if close:
            return stems[close[0]]
    return ""
