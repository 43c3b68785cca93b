"""The interface of stage 2: a model over the tokens of a codec, by diffusion or autoregressive."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from vqd_jax.core.shapes import Params, PRNGKeys, TextIds, Tokens
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.models.conditioning import ClassConditioner, Conditioner, NoConditioner
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.base import Constraint, Sampler
from vqd_jax.samplers.guidance import StaticGuidance
from vqd_jax.stages.vqvae import VQVAEStage

AnySampler = Sampler | AutoregressiveSampler
AnyConditioner = Conditioner | ClassConditioner | NoConditioner


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The prompts of a batch of images.

    Attributes:
      ids: int (p + 1, b, m). The p prompts that each image blends, then the negative prompt.
      drop: bool (p + 1, b). True where the learned null replaces the prompt.
    """

    ids: Any  # Any, as pytrees also hold shapes and shardings
    drop: Any


@runtime_checkable
class TokenStage(Protocol):
    """What sampling, evaluation and the pipeline ask of a model over tokens.

    Attributes:
      codec: the VQ-VAE whose tokens are modelled.
      process: the diffusion, None for autoregressive models.
      tokens: tokens of an image.
      fixed_sampling: keys of `config.sampling` that have only one value for this model.
      windowed: whether `sample` can make a part of its calls (`window`).
    """

    @property
    def codec(self) -> VQVAEStage: ...

    @property
    def process(self) -> MaskAndReplace | None: ...

    @property
    def tokens(self) -> int: ...

    @property
    def fixed_sampling(self) -> dict[str, Any]: ...

    windowed: bool

    def calls(self, sampler: AnySampler, t_start: int | None = None) -> int:
        """The number of network calls of `sampler` from `t_start`, by default from T."""
        ...

    def condition(self, params: Params, ids: TextIds, drop: Any) -> tuple[Any, Any]:
        """The condition of the network, and its mask."""
        ...

    def bound(
        self, params: Params, keys: PRNGKeys, z_0: Tokens, ids: TextIds, draws: int
    ) -> Float[Array, " b"]:
        """-log p(z_0 | text) in nats per token, or an estimate of its bound from `draws` times."""
        ...

    def sample(
        self,
        params: Params,
        keys: PRNGKeys,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        sampler: Any,
        static_guidance: StaticGuidance,
        *,
        constraint: Constraint | None = None,
        trace: bool = False,
        **windowed: Any,
    ) -> Any:
        """Tokens (b, n); with `trace` also the states after each call (calls, b, n).

        `dynamic` holds the arguments of guidance that do not need another compilation: "scales"
        (p, b), "temperature" and "top_p".
        """
        ...

    def watch(
        self,
        run: Callable[[tuple[int, int] | None, Any], Any],
        params: Params,
        keys: PRNGKeys,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        sampler: Any,
        static_guidance: StaticGuidance,
        *,
        constraint: Constraint | None = None,
        t_start: int | None = None,
    ) -> Iterator[Any]:
        """The states after each call, the last one as `sample` returns it.

        `run(window, z)` samples with the program of `sampling.sample`: all calls if `window` is
        None, else the calls of the window from the state z.
        """
        ...


def freeze_encoder(conditioner: AnyConditioner) -> Callable[[Params], Any] | None:
    """A function that marks the parameters of a frozen text encoder, None if nothing is frozen."""
    if not getattr(conditioner, "frozen", False):
        return None
    frozen = lambda path, _: (
        [getattr(entry, "key", None) for entry in path[:2]] == ["conditioner", "encoder"]
    )
    return functools.partial(jax.tree_util.tree_map_with_path, frozen)
