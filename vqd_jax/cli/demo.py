"""Open a page in the browser to generate images; it has a JSON interface, too.

  vqd demo [--workdir=DIR] [--port=7860]

Only this machine can reach the page, unless --host says otherwise. Behind a proxy with a name of
its own, give that name with --allow_host.
"""

import functools
import os
import sys
from collections.abc import Sequence

from absl import flags

from vqd_jax.cli.flags import (
    checkpoints_of,
    define_loading_flags,
    define_model_flag,
    loading,
)

LEAVING = 10.0  # seconds for a running network call to end after Ctrl-C


def define_flags(options: flags.FlagValues) -> None:
    define_model_flag(options)
    define_loading_flags(options)
    flags.DEFINE_string(
        "host",
        "127.0.0.1",
        "address to listen on; with 0.0.0.0 (or :: for IPv6, too) everyone in the network can use "
        "the page, without a password",
        flag_values=options,
    )
    flags.DEFINE_multi_string(
        "allow_host",
        [],
        "a name by which browsers may reach the page beside localhost, this machine's name and IP "
        "addresses, such as that of a proxy; may be repeated",
        flag_values=options,
    )
    flags.DEFINE_integer(
        "port",
        7860,
        "port to listen on; 0 for any free one",
        lower_bound=0,
        upper_bound=65535,
        flag_values=options,
    )


def main(options: flags.FlagValues, arguments: Sequence[str]) -> None:
    from vqd_jax.inference import pipeline
    from vqd_jax.web.demo import access, api
    from vqd_jax.web.demo.queue import JobQueue
    from vqd_jax.web.demo.server import Server

    allowed = access.host_names(options.allow_host)
    model = pipeline.load(options.workdir, **loading(options))
    weights = model.digest
    about = api.model_info(model, options.workdir, weights)
    queue = JobQueue(functools.partial(api.draw, model, weights=weights))
    parse = functools.partial(api.parse_request, model)
    server = Server(options.host, options.port, about, parse, queue, allowed)
    if not access.is_loopback(options.host):
        print(
            f"warning: everyone who can reach {options.host} can generate images here",
            file=sys.stderr,
        )
    print(f"{server.address}  (Ctrl-C ends it; {checkpoints_of(model)})", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(flush=True)
        if not queue.close(LEAVING):
            os._exit(0)  # a compilation cannot be stopped, and would crash an ending interpreter
