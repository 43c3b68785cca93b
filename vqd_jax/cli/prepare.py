"""Prepares a data set: `vqd prepare` with the flags of training: --config=configs/… --workdir=DIR
--config.section.key=value.

Every picture is decoded once, which finds the broken ones, and goes into a few large files. Up to 1
% may be broken; of a folder of one's own half of the pictures, and any number without a caption.
What is left out is listed. With data.transform=resize these files hold the finished squares, so
that training reads small pictures; random crops need the whole pictures, so with crop and reference
they hold the original files as they are. Training reads the prepared set for as long as the
originals, which it still lists, stay the same: names, sizes and captions, and in a folder of one's
own the contents. A run that was stopped goes on when started again.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from vqd_jax.cli import runner
from vqd_jax.config import build
from vqd_jax.core.errors import UserError
from vqd_jax.data import packed
from vqd_jax.data.files import printable

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file in configs/, with :variant if it has any.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "That of the training, runs/<config> by default: the set is kept in its folder cache, "
    "or where data.cache says.",
)


def main(argv: Any) -> None:
    flag = flags.FLAGS["config"]
    workdir = runner.workdir(
        config_flags.get_config_filename(flag) if flag.present else "", _WORKDIR.value
    )
    config = _CONFIG.value
    if config.data.source == "emoji":
        raise UserError("data.source=emoji needs no preparing: training reads it as it is")
    build.transform(config, training=True)
    cache = Path(config.data.cache) if config.data.cache else workdir / "cache"
    source = build.raw_source(config, cache)
    made = packed.pack(str(cache), source, build.packed_size(config))
    print(f"prepared {made.pictures} pictures for {len(made)} examples in {made.root}")
    print(
        f"left out {len(made.skipped)}"
        + "".join(
            f"\n  {printable(name)}: {reason}" for name, reason in sorted(made.skipped.items())
        )
    )
    print("training with the same flags reads them: python -m vqd_jax.main")


def run() -> None:
    runner.run(main)
