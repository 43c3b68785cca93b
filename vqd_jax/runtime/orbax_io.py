"""The items of one checkpoint as files, by Orbax: written by one process, or by all processes over
which their arrays are sharded.

An item is a tree of arrays, stored as nested dicts, or a JSON value. Any number of processes can
read it, however it was written.
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

TIMEOUT = 1200  # seconds for the last work of process 0; as long as Orbax gives each to write
_saves = itertools.count()
Finish = Callable[[Callable[[], None]], None]


def leaves_by_path(tree: Any) -> dict[tuple[str, ...], Any]:
    """The leaves of a tree, by the names on the path to them."""
    name = lambda key: jax.tree_util.keystr((key,), simple=True)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(map(name, path)): leaf for path, leaf in leaves}


def is_sharded(items: Any) -> bool:
    """Whether some array is sharded over processes, so that none of them has all of it."""
    arrays = [x for x in jax.tree.leaves(items) if isinstance(x, jax.Array)]
    return any(not (x.is_fully_addressable or x.is_fully_replicated) for x in arrays)


def to_host(value: Any, *, copy: bool, sharded: bool) -> Any:
    """An item in the form that `write` takes, or `write_sharded` if `sharded`: nested dicts of
    NumPy arrays, copied if `copy`, or a JSON value. Collective.

    With `sharded`, arrays of several processes stay on their devices. Otherwise process 0 gets them
    in full, and the other processes get an empty dict.
    """
    if not _has_arrays(value):
        return json.loads(json.dumps(value, default=lambda x: x.item()))
    leaves = leaves_by_path(value)
    stays = lambda x: sharded and isinstance(x, jax.Array) and not x.is_fully_addressable
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
    if not sharded and jax.process_index() != 0:
        return tree
    for path, leaf in leaves.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        # On the CPU, a view would keep the buffer from being donated.
        branch[path[-1]] = leaf if stays(leaf) else np.array(leaf, copy=copy or None)
    return tree


def write(directory: Path, items: Mapping[str, Any], callback: Callable[[], None]) -> None:
    """Writes items of `to_host` in this process alone, and then calls `callback`."""
    with _checkpointer() as checkpointer:
        checkpointer.save(directory, args=_args(items))
    callback()


def write_sharded(directory: Path, items: Mapping[str, Any]) -> Finish:
    """Starts to write items of `to_host` in all processes, each its own shards of arrays, which may
    be donated afterwards. Collective.

    Returns `finish(callback)`, which every process must call, from any thread. Process 0 runs
    `callback` once all have written, and `finish` then returns. The processes synchronise through
    the coordination service, as a computation could interfere with those of training.
    """
    import orbax.checkpoint as ocp  # slow to import

    processes, name = set(range(jax.process_count())), f"save_{next(_saves)}"
    checkpointer = _checkpointer(
        ocp.AsyncCheckpointer, active_processes=processes, barrier_sync_key_prefix=name
    )
    checkpointer.save(directory, args=_args(items))

    def finish(callback: Callable[[], None]) -> None:
        with contextlib.closing(checkpointer):
            checkpointer.wait_until_finished()
        if jax.process_index() == 0:
            callback()
        ocp.multihost.sync_global_processes(f"{name}_last", timeout=TIMEOUT, processes=processes)

    return finish


def read(directory: Path, item: str, like: Any = None) -> Any:
    """An item as nested dicts of NumPy arrays, or the JSON value. Arrays that in `like` are sharded
    over devices of several processes are read onto those devices, each process its own shards.
    """
    import orbax.checkpoint as ocp

    args = ocp.args.JsonRestore()
    if (directory / item / "_METADATA").is_file():
        stored = ocp.PyTreeCheckpointHandler().metadata(directory / item).tree
        wanted: dict[Any, Any] = {} if like is None else leaves_by_path(like)

        def restore_args(path: jax.tree_util.KeyPath, meta: Any) -> ocp.RestoreArgs:
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

        restore = jax.tree_util.tree_map_with_path(restore_args, stored)
        args = ocp.args.PyTreeRestore(item=stored, restore_args=restore)
    with _checkpointer() as checkpointer:
        return checkpointer.restore(directory, args=ocp.args.Composite(**{item: args}))[item]


def _has_arrays(value: Any) -> bool:
    return any(isinstance(leaf, (np.ndarray, jax.Array)) for leaf in jax.tree.leaves(value))


def _args(items: Mapping[str, Any]) -> Any:
    import orbax.checkpoint as ocp

    save = lambda x: ocp.args.StandardSave(x) if _has_arrays(x) else ocp.args.JsonSave(x)
    return ocp.args.Composite(**{name: save(value) for name, value in items.items()})


def _checkpointer(make: Callable[..., Any] | None = None, **shared: Any) -> Any:
    """An Orbax checkpointer of this process alone, for which the others need not wait, or one with
    the options `shared` by several processes.
    """
    import orbax.checkpoint as ocp

    if not shared and jax.process_count() > 1:
        me = jax.process_index()
        shared = {
            "primary_host": me,
            "active_processes": {me},
            "barrier_sync_key_prefix": f"process_{me}",
        }
    options = ocp.options.MultiprocessingOptions(**shared)
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
