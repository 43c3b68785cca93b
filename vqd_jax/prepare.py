"""Prepares a large data set: `python -m vqd_jax.prepare --config=configs/… --cache=DIR [--config.section.key=value]`.

Every picture is decoded once, which finds the broken ones (up to 1 % are left out and named), and goes into a few large files.
With data.transform=resize these hold the finished squares, so that training reads small pictures; random crops need the whole
pictures, so with crop and reference they hold the original files as they are. Training with the same --config.data.cache reads
the prepared set for as long as names, sizes and captions of the originals, which it still lists, stay the same. A run that was
stopped goes on when started again.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from vqd_jax import build, command
from vqd_jax.data import packed
from vqd_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/, with :variant if it has any.", lock_config=True)
_CACHE = flags.DEFINE_string("cache", None, "Where the prepared set is kept; the config's data.cache by default.")


def main(argv: Any) -> None:
    flag = flags.FLAGS["config"]
    path = config_flags.get_config_filename(flag).partition(":")[0] if flag.present else ""
    if not path:
        raise UserError("--config is missing: the config that is to be trained, with the path of its data set")
    if not Path(path).is_file():
        raise UserError(f"there is no config file {path}; the ones that come with vqd_jax are in configs/")
    config = _CONFIG.value
    cache = _CACHE.value or config.data.cache
    if not cache:
        raise UserError("--cache is missing: a folder for the prepared set, which training then takes as --config.data.cache")
    if config.data.source in ("emoji", "folder"):
        raise UserError(f"data.source={config.data.source} needs no preparing: training reads it as it is")
    build.transform(config, training=True)
    source = build.original(config, Path(cache))
    made = packed.pack(cache, source, build.packed_size(config))
    print(f"prepared {len(source.pictures()) - len(made.skipped)} pictures for {len(made)} examples in {made.root}")
    print(f"left out {len(made.skipped)} that cannot be decoded" + "".join(f"\n  {name}" for name in made.skipped))
    print(f"training reads them with --config.data.cache={cache}")


def run() -> None:
    command.run(main)


if __name__ == "__main__":
    run()
