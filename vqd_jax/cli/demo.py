"""A page to draw pictures on, with a JSON interface: `vqd demo --workdir=DIR`. It is for this
machine alone unless told.
"""

import functools
import os
import sys
from typing import Any

from absl import flags

from vqd_jax.cli import loading_flags, runner

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained workdir, for example pretrained/emoji.")
_HOST = flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "Where to listen; 0.0.0.0 lets in everyone who reaches it, without a password.",
)
_PORT = flags.DEFINE_integer(
    "port", 7860, "The port; 0 for any that is free.", lower_bound=0, upper_bound=65535
)

LEAVING = 10.0  # seconds that a network call may take to end


def main(argv: Any) -> None:
    from vqd_jax.core.errors import UserError
    from vqd_jax.eval.generate import digest
    from vqd_jax.inference import pipeline
    from vqd_jax.web.demo import api
    from vqd_jax.web.demo.queue import JobQueue
    from vqd_jax.web.demo.server import Server, loopback

    if not _WORKDIR.value:
        raise UserError("--workdir is missing; for a first try take --workdir=pretrained/emoji")
    model = pipeline.load(_WORKDIR.value, **loading_flags.loading())
    weights = digest(model)
    about = api.about(model, _WORKDIR.value, weights)
    line = JobQueue(functools.partial(api.draw, model, weights=weights))
    server = Server(_HOST.value, _PORT.value, about, functools.partial(api.read, model), line)
    if not loopback(_HOST.value):
        print(f"warning: everyone who reaches {_HOST.value} can draw here", file=sys.stderr)
    print(f"{server.address}  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(flush=True)
        if not line.close(LEAVING):
            os._exit(
                0
                # it compiles, which cannot be broken off; an interpreter that ends under it would crash
            )


def run() -> None:
    runner.run(main)
