"""What the training step and loop need of a stage."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, DTypeLike, Float, Int

from vqd_jax.core.shapes import Params, PRNGKey
from vqd_jax.data.loader import Batch
from vqd_jax.runtime.rows import Rows


@runtime_checkable
class Trainable(Protocol):
    """A loss, and a state that is updated without gradients.

    `loss` is a mean over the rows of `batch`. Each leaf of its `aux` has those rows first; from the
    `aux` of the global batch `update_extra` makes the next `extra`, and metrics that are no means
    over rows.
    """

    def loss(
        self,
        params: Params,
        extra: Any,
        frozen: Params,
        batch: dict[str, Any],
        key: PRNGKey,
        step: Int[Array, ""],
        rows: Rows,
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], dict[str, Any]]]:
        """(loss, (aux, metrics))."""

    def update_extra(
        self,
        extra: Any,
        aux: dict[str, Any],
        key: PRNGKey,
        step: Int[Array, ""],
        axis: str | None,
    ) -> tuple[Any, dict[str, Any]]:
        """(extra, metrics); devices along `axis` have parts of `aux`."""


@runtime_checkable
class Stage(Trainable, Protocol):
    """What a trained stage offers, beside the loss.

    Attributes:
      watched: the metric in which `train.guard` looks for spikes.
      positions: of an example, over which its network runs; the number of micro-batches follows
        from it.
      dtype: of the matrix products of its networks.
      unchanged: maps the parameters to a tree that is True where training leaves them alone; None
        if it changes all.
    """

    watched: str

    @property
    def positions(self) -> int: ...

    @property
    def dtype(self) -> DTypeLike: ...

    @property
    def unchanged(self) -> Callable[[Params], Any] | None: ...

    def init(self, key: PRNGKey, batch: Batch) -> tuple[Params, Any]:
        """(params, extra)."""

    def weights_of(self, params: Params, extra: Any) -> Params:
        """All that sampling needs: the item `weights` of a checkpoint."""

    def from_weights(self, weights: Params) -> tuple[Params, Any]:
        """(params, extra) from a checkpoint that holds weights only."""
