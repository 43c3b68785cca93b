"""What is known of a run as one page: `vqd report --workdir=DIR [--out=FILE.html]`. Training writes
it, too.
"""

from pathlib import Path
from typing import Any

from absl import flags

from vqd_jax.cli import runner

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.")
_OUT = flags.DEFINE_string("out", None, "The page to write; <workdir>/report.html by default.")


def main(argv: Any) -> None:
    from vqd_jax.core.errors import UserError
    from vqd_jax.web.report import page

    if not _WORKDIR.value:
        raise UserError("--workdir is missing: the folder of a run")
    workdir = Path(_WORKDIR.value)
    page.write(workdir, out := Path(_OUT.value) if _OUT.value else workdir / page.NAME)
    print(out)


def run() -> None:
    runner.run(main)
