"""Keys of earlier versions that checkpoints may still hold; everything else about the format of a
stored config is in `defaults.complete`.
"""

from typing import Any

from vqd_jax.core.errors import UserError

# Keys that no longer exist, with the value at which they changed nothing.
REMOVED: dict[str, dict[str, Any]] = {
    "diffusion_loss": {"antithetic": False, "continuous": False},
}


def without_removed(section: str, values: dict[str, Any]) -> dict[str, Any]:
    """A stored section without the keys of REMOVED. UserError for one that is not at its neutral
    value.
    """
    removed = REMOVED.get(section, {})
    for key in removed.keys() & values.keys():
        if values[key] != removed[key]:
            raise UserError(
                f"the stored config has {section}.{key}={values[key]!r}, which this version no "
                "longer supports: use vqd_jax 0.1.0"
            )
    return {key: value for key, value in values.items() if key not in removed}
