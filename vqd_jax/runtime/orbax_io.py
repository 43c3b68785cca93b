"""The items of one checkpoint as files, by Orbax: written by one process, or by all of those over
which their arrays are cut.

An item is a tree of arrays, kept as nested dicts, or anything JSON can hold. Whatever wrote it, any
number of processes can read it.
"""

import contextlib
import itertools
import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

PATIENCE = (
    1200  # seconds in which the first process does what comes last, as Orbax gives each to write
)
_NUMBERS = itertools.count()


def by_path(tree: Any) -> dict[tuple[str, ...], Any]:
    """The leaves of a tree by the names on the way to them."""
    name = lambda key: jax.tree_util.keystr((key,), simple=True)
    return {
        tuple(map(name, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def is_sharded(items: Any) -> bool:
    """Whether no process has the whole of some array."""
    cut = lambda x: (
        isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    )
    return any(map(cut, jax.tree.leaves(items)))


def to_host(value: Any, *, copy: bool, together: bool) -> Any:
    """An item as `write` (`together`: as `write_sharded`) takes it: nested dicts of leaves on the host,
    copied if need be, or what JSON gives back.

    Every process calls it. `together`, arrays of several processes stay where they are; otherwise
    the first process gets the whole of them, and the others nothing.
    """
    if not _has_arrays(value):
        return json.loads(json.dumps(value, default=lambda x: x.item()))
    leaves, stays = (
        by_path(value),
        lambda x: together and isinstance(x, jax.Array) and not x.is_fully_addressable,
    )
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.Array) or stays(leaf):
            continue
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"{'/'.join(path)} is a PRNG key: derive keys from the step instead of storing them"
            )
        if is_sharded(leaf):
            leaves[path] = multihost_utils.process_allgather(leaf, tiled=True)
        else:
            leaf.copy_to_host_async()
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items() if together or jax.process_index() == 0 else ():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        # On the CPU a view would keep the buffer from being donated.
        branch[path[-1]] = leaf if stays(leaf) else np.array(leaf, copy=copy or None)
    return tree


def write(directory: Path, items: Mapping[str, Any], last: Callable[[], None]) -> None:
    """Writes prepared items in this process alone, and then does what comes last."""
    with _checkpointer() as checkpointer:
        checkpointer.save(directory, args=_args(items))
    last()


def write_sharded(
    directory: Path, items: Mapping[str, Any]
) -> Callable[[Callable[[], None]], None]:
    """Begins to write prepared items in all processes, each its own parts of arrays, which may be
    donated when this returns.

    Every process calls it, and then what it returns, in any thread, with what the first process is
    to do last, when all have written; that returns when this is done, too. They agree through the
    coordination service, never by a computation that the training's could get in the way of.
    """
    import orbax.checkpoint as ocp  # slow to import

    everyone, name = set(range(jax.process_count())), f"save_{next(_NUMBERS)}"
    checkpointer = _checkpointer(
        ocp.AsyncCheckpointer, active_processes=everyone, barrier_sync_key_prefix=name
    )
    checkpointer.save(directory, args=_args(items))

    def finish(last: Callable[[], None]) -> None:
        with contextlib.closing(checkpointer):
            checkpointer.wait_until_finished()
        if jax.process_index() == 0:
            last()
        ocp.multihost.sync_global_processes(f"{name}_last", timeout=PATIENCE, processes=everyone)

    return finish


def read(directory: Path, item: str, like: Any = None) -> Any:
    """An item as nested dicts of NumPy arrays, or the JSON value; of arrays that in `like` lie on
    devices of several processes only the parts of this one are read, to there.
    """
    import orbax.checkpoint as ocp

    if not (directory / item / "_METADATA").is_file():
        args = ocp.args.JsonRestore()
    else:
        stored = ocp.PyTreeCheckpointHandler().metadata(directory / item).tree
        wanted = {} if like is None else by_path(like)

        def how(path: Any, meta: Any) -> Any:
            if isinstance(meta, ocp.metadata.ScalarMetadata):
                return ocp.RestoreArgs()
            leaf = wanted.get(tuple(jax.tree_util.keystr((key,), simple=True) for key in path))
            sharding = getattr(leaf, "sharding", None)
            if (
                sharding is None
                or sharding.is_fully_addressable
                or tuple(np.shape(leaf)) != tuple(meta.shape)
            ):
                return ocp.RestoreArgs(restore_type=np.ndarray)
            return ocp.ArrayRestoreArgs(sharding=sharding)

        args = ocp.args.PyTreeRestore(
            item=stored, restore_args=jax.tree_util.tree_map_with_path(how, stored)
        )
    with _checkpointer() as checkpointer:
        return checkpointer.restore(directory, args=ocp.args.Composite(**{item: args}))[item]


def _has_arrays(value: Any) -> bool:
    return any(isinstance(leaf, (np.ndarray, jax.Array)) for leaf in jax.tree.leaves(value))


def _args(items: Mapping[str, Any]) -> Any:
    import orbax.checkpoint as ocp

    return ocp.args.Composite(
        **{
            name: ocp.args.StandardSave(value) if _has_arrays(value) else ocp.args.JsonSave(value)
            for name, value in items.items()
        }
    )


def _checkpointer(make: Any = None, **several: Any) -> Any:
    """Orbax, for this process alone: the others neither write nor wait; or for `several`."""
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = {
        "primary_host": me,
        "active_processes": {me},
        "barrier_sync_key_prefix": f"process_{me}",
    }
    options = ocp.options.MultiprocessingOptions(
        **several or (alone if jax.process_count() > 1 else {})
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options)
    )
    return (make or ocp.Checkpointer)(handler, multiprocessing_options=options)


def quiet_orbax() -> None:
    """Drops Orbax's informational log lines, some twenty for each save, and the repetitions of a
    failed save by its threads. A setting of the whole process, which only commands make.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_wanted)
    previous = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            previous(unraisable)

    sys.unraisablehook = hook


def _is_wanted(record: logging.LogRecord) -> bool:
    if "never retrieved" in str(record.msg) or "_SignalingThread" in str(record.msg):
        return False
    return record.levelno > logging.INFO or "orbax" not in Path(record.pathname).parts
