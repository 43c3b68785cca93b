"""What a config leaves to the machine follows from the platform that programs are built for."""

import jax.numpy as jnp
import pytest

from vqd_jax.config import build
from vqd_jax.config.defaults import defaults
from vqd_jax.runtime.devices import building_for, platform
from vqd_jax.train.step import default_micro_batches


def denoiser(attention="auto", **fields):
    c = defaults()
    c.condition.kind = "none"
    c.denoiser.attention = attention
    c.denoiser.update(fields)
    return build.diffusion_stage(c, build.tokenizer(c, [])).denoiser


@pytest.mark.parametrize(
    "built_for,dtype,attention",
    [
        ("cpu", jnp.float32, "chunked"),
        ("tpu", jnp.bfloat16, "splash"),
        ("gpu", jnp.bfloat16, "cudnn"),
    ],
)
def test_what_is_auto(built_for, dtype, attention):
    with building_for(built_for):
        network = denoiser()
        assert (platform(), network.dtype, network.attention) == (built_for, dtype, attention)
        # kernels of other platforms, as a checkpoint may name them, give way to its own
        assert {denoiser(kind).attention for kind in ("cudnn", "splash")} == {attention}
        assert denoiser("full").attention == "full"
        assert default_micro_batches(64, 1024) == (64 if built_for == "cpu" else 1)
    assert platform() == "cpu"


@pytest.mark.parametrize("fields", [dict(dtype="float32"), dict(width=36, heads=3), dict(heads=1)])
def test_a_gpu_without_a_kernel_for_it_takes_full_attention(fields):
    """Float32, 12 features in a head, and 192."""
    with building_for("gpu"):
        assert denoiser(**fields).attention == "full"
