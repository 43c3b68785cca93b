"""VQ-Diffusion in JAX: text to image by discrete diffusion over the tokens of a VQ-VAE.

`load` opens a trained model, `TextToImage` is its class; the command line is `vqd` (or `python -m
vqd_jax`).
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqd_jax.inference.pipeline import TextToImage as TextToImage
    from vqd_jax.inference.pipeline import load as load

__all__ = ["TextToImage", "__version__", "load"]

try:
    __version__ = version("vqd_jax")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    """Imports JAX and the pipeline on first use, so that `import vqd_jax` is fast."""
    if name in ("TextToImage", "load"):
        return getattr(import_module("vqd_jax.inference.pipeline"), name)
    raise AttributeError(f"module 'vqd_jax' has no attribute {name!r}")
