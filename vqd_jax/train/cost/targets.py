"""Devices that programs are compiled for, which need not be here: slices of TPUs and machines with
GPUs, by the compilers of `jax[tpu]` and `jax[cuda12]`, or processors of this machine.
"""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from vqd_jax.core.errors import UserError
from vqd_jax.runtime.hardware import CHIPS, Chip

TPUS = {"v4": "TPU v4", "v5e": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e", "tpu7x": "TPU7x"}
KNOWN = (
    "cpu:8, h100:1x1x8, h200:1x1x8, a100:1x1x8, or a slice of TPUs: v4:2x2x1, v5e:2x2, v5p:2x2x1, "
    "v6e:2x4, tpu7x:2x2x1"
)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA needs to know of a GPU to compile for it; bandwidth and memory are in `CHIPS`."""

    name: str
    major: int
    minor: int
    features: str
    cores: int
    clock_ghz: float
    shared_per_core: int
    shared_per_block: int
    l2: int


HOPPER = dict(
    major=9,
    minor=0,
    features="feature_extension: ACCELERATED_FEATURES",
    cores=132,
    clock_ghz=1.98,
    shared_per_core=233472,
    shared_per_block=232448,
    l2=52428800,
)
GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", **HOPPER),
    "h200": Gpu("NVIDIA H200", **HOPPER),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 0, "", 108, 1.41, 167936, 166912, 41943040),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: as the user typed it.
      platform: "cpu", "gpu" or "tpu".
      chip: of each device; None for a CPU.
    """

    name: str
    platform: str
    chip: Chip | None
    devices: tuple[jax.Device, ...]


def target(name: str) -> Target:
    """The devices of "KIND:TOPOLOGY", such as v5e:2x2 or h100:1x1x8 (of one machine with eight).
    UserError for an unknown kind, or if its compiler is not installed.
    """
    kind, _, topology = name.lower().partition(":")
    if kind in TPUS and re.fullmatch(r"\d+x\d+(x\d+)?", topology):
        _require("libtpu", "jax[tpu]", name)
        devices = _devices(name, "tpu", f"{kind}:{topology}")
        return Target(name, "tpu", CHIPS[TPUS[kind]], devices)
    if kind in GPUS and re.fullmatch(r"(\d+x\d+x\d+)?", topology):
        _require("jax_cuda12_plugin", "jax[cuda12]", name)
        options = {"target_config": _description(GPUS[kind]), "topology": topology or "1x1x1"}
        devices = _devices(name, "cuda", kind, **options)
        return Target(name, "gpu", CHIPS[GPUS[kind].name], devices)
    if kind == "cpu" and topology.isdecimal():
        devices = tuple(jax.devices("cpu"))
        if not 1 <= int(topology) <= len(devices):
            raise UserError(f"this process has {len(devices)} CPU devices, and {name} needs more")
        return Target(name, "cpu", None, devices[: int(topology)])
    raise UserError(f"--chip must be like {KNOWN}, got {name!r}")


def prepare_environment(name: str) -> None:
    """Settings of the whole process, for commands only, before JAX is used: no accelerator is
    looked for, and as many CPU devices are there as `name` says.
    """
    quiet = {"TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3", "TPU_LOG_DIR": "disabled"}
    alone = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    }
    os.environ.update(quiet | alone)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # programs for chips cannot be read back
    kind, _, count = name.partition(":")
    if kind == "cpu" and count.isdecimal() and int(count):
        jax.config.update("jax_num_cpu_devices", int(count))


def _require(module: str, package: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f'the compiler for {name} is not installed: pip install "{package}" (it runs without '
            "the chip)"
        )


def _devices(name: str, platform: str, described_as: str, **options: str) -> tuple[Any, ...]:
    try:
        described = topologies.get_topology_desc(described_as, platform, **options)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the compiler has no devices {name} ({reason:.200})") from error
    return tuple(described.devices)


def _description(gpu: Gpu) -> str:
    """A GPU as XLA's text of `GpuTargetConfigProto`."""
    chip = CHIPS[gpu.name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_per_core}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {128 if gpu.major == 9 else 64}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {chip.bandwidth:.0f}
  l2_cache_size: {gpu.l2}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {chip.memory:.0f}
  shared_memory_per_block_optin: {gpu.shared_per_block}
  cuda_compute_capability {{ major: {gpu.major} minor: {gpu.minor} {gpu.features} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {gpu.major}.{gpu.minor}"
  device_address_bits: 64
  ecc_enabled: true
  name: "{gpu.name}"
  driver_version: "12.9.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{gpu.name}"
"""
