"""Write one HTML page about a run: metrics, images, codebook, time, hardware and config.

  vqd report --workdir=DIR [--out=FILE.html]

Training writes the same page.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vqd_jax.core.errors import UserError


def define_flags(options: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of a run", flag_values=options)
    flags.DEFINE_string(
        "out", None, "page to write; <workdir>/report.html by default", flag_values=options
    )


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    from vqd_jax.runtime.workdir import Workdir

    if not options.workdir:
        raise UserError("--workdir is missing: the folder of a run")

    from vqd_jax.web.report import page

    workdir = options.workdir
    Workdir(workdir).download()
    out = Path(options.out) if options.out else Workdir(workdir).report
    page.write(workdir, out)
    print(out)
