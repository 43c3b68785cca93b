"""JAX's compilation cache on disk."""

import os
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs of this user, in JAX_COMPILATION_CACHE_DIR or
    ~/.cache/vqd_jax. A setting of the whole process, which only commands make.
    """
    settings = {
        "jax_compilation_cache_dir": str(Path.home() / ".cache" / "vqd_jax" / "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # small programs are many
    }
    for name, value in settings.items():
        if not os.environ.get(name.upper()):
            jax.config.update(name, value)
