"""Memory, communication and speed of training or sampling on devices that are not at hand
(`vqd plan_memory`), by the devices' own compiler.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vqd_jax.config import build
from vqd_jax.core.errors import UserError
from vqd_jax.core.prng import root_key
from vqd_jax.inference.loading import in_compute_dtype
from vqd_jax.runtime.devices import AXIS, building_for
from vqd_jax.runtime.parallel import bytes_per_device, parallelism
from vqd_jax.stages import sampling
from vqd_jax.stages.token_stage import Conditioning
from vqd_jax.train import dry_run
from vqd_jax.train.cost.program import Program
from vqd_jax.train.cost.targets import Target


def plan_training(config: ConfigDict, name: str, on: Target) -> dict[str, Any]:
    """A plan of a stage's training step. UserError if it does not fit, or if the devices cannot
    share the batch.
    """
    with building_for(on.platform):
        step = dry_run.dry_run(config, name)
        parallel = parallelism(**config.parallel, on=on.devices)
        program = _compile(step.lower(parallel), f"a training step of {name} on {on.name}")
        micro_batches = step.train.micro_batches(parallel.device_count, step.stage.positions)
    state = parallel.device_put_shapes(step.state)
    parts = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "average": state.ema,
        "other state": (state.extra, state.step),
        "frozen": parallel.device_put_shapes(step.frozen),
        "batch": parallel.shard_shapes(step.batch),
    }
    return _plan(
        on,
        program,
        what=f"{name}, a training step",
        axes=parallel.axes,
        images=step.train.batch_size,
        parameters=step.state.params,
        arguments={part: bytes_per_device(tree) for part, tree in parts.items()},
        flops=step.flops(),
        options={"micro-batches": micro_batches, **_how(step.stage)},
    )


def plan_sampling(config: ConfigDict, name: str, on: Target, rows: int) -> list[dict[str, Any]]:
    """Plans of sampling `rows` images a device, by the config's sampler and guidance, and of
    decoding them.
    """
    mesh = Mesh(np.array(on.devices), (AXIS,))
    place = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec())
        ),
        tree,
    )
    images = rows * len(on.devices)
    with building_for(on.platform):
        dry = dry_run.dry_run(config, name)
        stage = dry.stage
        kept = functools.partial(in_compute_dtype, stage)
        weights = place(jax.eval_shape(kept, dry.state.params))
        side = config.data.image_size
        image = {"image": dry_run.shape(1, side, side, 3, dtype="uint8")}
        codec = place(dry_run.codec_weights(stage.codec, image))
        length = dry_run.tokenizer(config).length
        settings = dict(config.sampling) | stage.fixed_sampling
        sampler, guidance_config = build.sampling(config, **settings)
        scales = np.full((1, images), guidance_config.guidance, np.float32)
        keys = jax.eval_shape(lambda: jax.random.split(root_key(0), images))
        shape = functools.partial(dry_run.shape, dtype="int32")
        ids, drop = shape(2, images, length), dry_run.shape(2, images, dtype="bool")
        traced = sampling.traced_sample(
            stage,
            weights,
            place(keys),
            Conditioning(place(ids), place(drop)),
            scales,
            sampler=sampler,
            guidance_config=guidance_config,
            devices=on.devices,
        )
        program = _compile(traced.lower(), f"sampling of {rows} images on {on.name}")
        decode = jax.jit(stage.codec.decode).lower(codec, place(shape(rows, stage.tokens)))
        decoding = _compile(decode, f"decoding of {rows} images on {on.name}")
    common = dict(axes={AXIS: len(on.devices)}, images=images, flops=None)
    arguments = {"parameters": bytes_per_device(weights)}
    guided = guidance_config.guidance != 1
    options = {"calls": stage.calls(sampler), "guided": guided, **_how(stage)}
    return [
        _plan(
            on,
            program,
            what=f"{name}, sampling with {settings['sampler']}",
            parameters=weights,
            arguments=arguments,
            options=options,
            **common,
        ),
        _plan(
            on,
            decoding,
            what="vqvae, decoding",
            parameters=codec,
            arguments={"parameters": bytes_per_device(codec)},
            options={},
            **common,
        ),
    ]


def _how(stage: Any) -> dict[str, Any]:
    """What a network's speed and memory depend on."""
    networks = (getattr(stage, name, None) for name in ("denoiser", "network", "model"))
    network = next(network for network in networks if network is not None)
    fields = {name: getattr(network, name, None) for name in ("attention", "remat", "scan")}
    fields["dtype"] = jnp.dtype(network.dtype).name
    return {name: value for name, value in fields.items() if value is not None}


def _compile(lowered: jax.stages.Lowered, what: str) -> Program:
    try:
        return Program.read(lowered.compile())
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("RESOURCE_EXHAUSTED: ")[2].strip().splitlines()[0]
        raise UserError(f"{what} does not fit, says its compiler: {reason:.300}") from error


def _plan(
    on: Target,
    program: Program,
    *,
    what: str,
    axes: dict[str, int],
    images: int,
    parameters: Any,
    arguments: dict[str, int],
    flops: int | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    chip, devices = on.chip, len(on.devices)
    seconds = {}
    if chip and flops:
        seconds["at the peak"] = flops / devices / chip.peak
    if chip and chip.clock and program.cycles:
        seconds["by the compiler's cycles"] = program.cycles / chip.clock
    return {
        "what": what,
        "target": on.name,
        "chip": chip and chip.name,
        "devices": devices,
        "axes": axes,
        "images": images,
        "options": options,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(parameters)),
        "flops": flops,
        "memory": dataclasses.asdict(program.memory) | {"peak": program.memory.peak},
        "fits": program.memory.peak <= chip.memory if chip else None,
        "arguments": arguments,
        "collectives": program.collectives,
        "kernels": program.kernels,
        "largest": program.largest,
        "cycles": program.cycles,
        "seconds": seconds,
    }


def table(p: dict[str, Any]) -> str:
    """The plan as text for people."""
    axes = " x ".join(f"{axis} {n}" for axis, n in p["axes"].items() if n > 1)
    options = ", ".join(f"{k} {v}" for k, v in p["options"].items())
    memory, chip = p["memory"], p["chip"] or "CPU device"
    parts = ", ".join(f"{name} {_bytes(n)}" for name, n in p["arguments"].items() if n)
    fits = "" if p["fits"] is None else ", fits" if p["fits"] else ", does not fit"
    lines = [
        f"{p['what']} of {p['images']} images on {p['devices']} x {chip}"
        + (f" ({axes})" if axes else ""),
        f"  parameters   {p['parameters']:,}" + (f"; {options}" if options else ""),
        f"  memory       {_bytes(memory['peak'])} on each device{fits}",
        f"    arguments    {_bytes(memory['arguments'])}: {parts}",
        f"    temporaries  {_bytes(memory['temporaries'])}",
        f"    outputs      {_bytes(memory['outputs'])}, of which {_bytes(memory['in_place'])} in "
        "the memory of donated arguments",
    ]
    largest = [f"{name} {_bytes(size)}" for name, size in [*p["largest"].items()][:3]]
    lines.append(f"    largest      {', '.join(largest)}")
    for kind, (count, size) in p["collectives"].items():
        lines.append(f"  {kind:12} {count:,} times, {_bytes(size)} of operands on each device")
    for name, count in p["kernels"].items():
        lines.append(f"  kernel       {name}, {count:,} times")
    if p["flops"]:
        lines.append(f"  operations   {p['flops'] / 1e12:.3g} TFLOP of the model, on all devices")
    if p["cycles"]:
        without = ", without the kernels" if p["kernels"] else ""
        lines.append(f"  cycles       {p['cycles'] / 1e6:,.1f} million, by the compiler{without}")
    for how, seconds in p["seconds"].items():
        rate = p["images"] / seconds
        lines.append(f"  {1e3 * seconds:,.1f} ms {how}: {rate:,.1f} images/s")
    return "\n".join(lines)


def _bytes(n: int | float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.2f} MB"
