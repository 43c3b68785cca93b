"""Open a page in the browser to generate images; it has a JSON interface, too.

  vqd demo [--workdir=DIR] [--port=7860]

With several models the page offers a choice: --workdir may be repeated, and each --adapter adds a
model, the first workdir with that adapter.

Only this machine can reach the page, unless --host says otherwise. Behind a proxy with a name of
its own, give that name with --allow_host.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from vqd_jax.cli.flags import checkpoints_of, define_loading_flags, loading
from vqd_jax.core.shipped import MODEL

if TYPE_CHECKING:
    from vqd_jax.web.demo.models import Model

LEAVING = 10.0  # seconds for a running network call to end after Ctrl-C


def define_flags(options: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "workdir",
        [MODEL],
        "workdir of a trained model, by default of the one that comes with vqd_jax; may be "
        "repeated; --stage, --checkpoint, --plan and --adapter are for the first",
        flag_values=options,
    )
    define_loading_flags(options, adapters=True)
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
    from vqd_jax.web.demo import access
    from vqd_jax.web.demo.models import Models
    from vqd_jax.web.demo.queue import JobQueue
    from vqd_jax.web.demo.server import Server

    allowed = access.host_names(options.allow_host)
    loaded = load(options)
    models = Models(loaded)
    queue = JobQueue(models.draw)
    server = Server(options.host, options.port, models.info(), models.parse, queue, allowed)
    if not access.is_loopback(options.host):
        print(
            f"warning: everyone who can reach {options.host} can generate images here",
            file=sys.stderr,
        )
    alone = f"; {checkpoints_of(loaded[0].model)}" if len(loaded) == 1 else ""
    print(f"{server.address}  (Ctrl-C ends it{alone})", flush=True)
    if not alone:
        for one in loaded:
            print(f"{one.name}, {checkpoints_of(one.model)}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(flush=True)
        if not queue.close(LEAVING):
            os._exit(0)  # a compilation cannot be stopped, and would crash an ending interpreter


def load(options: flags.FlagValues) -> "list[Model]":
    """The models that are asked for: the first workdir with each adapter, and then all workdirs."""
    from vqd_jax.inference import pipeline
    from vqd_jax.web.demo.models import Model

    first, *others = dict.fromkeys(options.workdir)
    given = loading(options)
    scale = {"adapter_scale": given.pop("adapter_scale")} if options.adapter else {}
    plain = {name: value for name, value in given.items() if name != "adapter"}
    return [
        *(
            Model(first, pipeline.load(first, **plain, adapter=adapter, **scale), adapter)
            for adapter in given.get("adapter", [])
        ),
        Model(first, pipeline.load(first, **plain)),
        *(Model(other, pipeline.load(other)) for other in others),
    ]
