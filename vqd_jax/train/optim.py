"""AdamW, or Muon on matrices and NAdamW on the rest, with warm-up, decay and gradient clipping.

Lengths are given in examples and converted to steps here.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import DTypeLike

from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.core.shapes import Params
from vqd_jax.train.muon import muon


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimizer of a stage.

    Attributes:
      learning_rate: the peak.
      final: fraction of the peak that is left at the end.
      warmup: examples over which the rate rises from 0.
      decay: "cosine", "linear" or "constant" after the warm-up.
      betas, weight_decay: of AdamW; the decay acts on every parameter, as in the released training
        code.
      clip: largest global norm of the gradient; 0 for no limit.
      muon: peak rate of Muon (Jordan et al. 2024) for the matrices between layers, scaled to
        AdamW's root mean square update of 0.2 (Liu et al. 2025). It shares warm-up, decay and
        weight decay; other parameters get AdamW with Nesterov momentum. 0 uses AdamW everywhere.
    """

    learning_rate: float
    warmup: int
    decay: str
    final: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    muon: float = 0.0

    def __post_init__(self):
        if self.decay not in ("cosine", "linear", "constant"):
            raise UserError(
                "the decay of a learning rate must be cosine, linear or constant, got "
                f"{self.decay!r}"
            )
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"a learning rate must be positive, got {self.learning_rate:g}")
        if min(self.warmup, self.final, self.weight_decay, self.clip) < 0 or not all(
            0 <= beta < 1 for beta in self.betas
        ):
            raise UserError(
                "an optimizer needs warmup, final, weight_decay and clip of at least 0, and betas "
                f"from 0 to below 1, got {self}"
            )
        if self.muon < 0:
            raise UserError(
                "the rate of Muon must be positive, or 0 for AdamW on everything, got "
                f"{self.muon:g}"
            )

    def schedule(self, examples: int, pace: Pace, peak: float | None = None) -> optax.Schedule:
        """The learning rate at each step of a training of so many examples; `peak` replaces
        `learning_rate`.
        """
        peak = self.learning_rate if peak is None else peak
        steps = max(examples // pace.batch_size, 1)
        warmup = min(max(self.warmup // pace.batch_size, 1), steps)
        rest = max(steps - warmup, 1)
        after = {
            "cosine": optax.cosine_decay_schedule(peak, rest, self.final),
            "linear": optax.linear_schedule(peak, peak * self.final, rest),
            "constant": optax.constant_schedule(peak),
        }[self.decay]
        rate = optax.join_schedules([optax.linear_schedule(0, peak, warmup), after], [warmup])
        return (lambda step: rate(step + pace.head_start)) if pace.head_start else rate

    def build(
        self,
        examples: int,
        pace: Pace,
        frozen: Callable[[Params], Any] | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> optax.GradientTransformation:
        """The optimizer of a training of so many examples. `frozen` maps the parameters to a tree
        of bool that is True for those that must not change; `dtype` is that of Muon's matrix
        products.
        """
        rate, decay = self.schedule(examples, pace), self.weight_decay
        if self.muon:
            others = optax.nadamw(rate, *self.betas, weight_decay=decay)
            update = muon(self.schedule(examples, pace, self.muon), others, decay, dtype)
        else:
            update = optax.adamw(rate, *self.betas, weight_decay=decay)
        if self.clip:
            update = optax.chain(optax.clip_by_global_norm(self.clip), update)
        if frozen:
            update = optax.partition({False: update, True: optax.set_to_zero()}, frozen)
        return update
