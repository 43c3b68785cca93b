"""AdamW with warm-up, decay and clipping by the global norm; lengths are given in examples and converted to steps here."""

import dataclasses

import optax

from vqd_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """Attributes:
      learning_rate: the peak. final: its share that is left at the end.
      warmup: examples over which it rises from 0.
      decay: "cosine", "linear" or "constant" after the warm-up.
      betas, weight_decay: of AdamW; the decay acts on every parameter, as in the released training code.
      clip: largest global norm of the gradient; 0 for no limit.
    """

    learning_rate: float
    warmup: int
    decay: str
    final: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float

    def __post_init__(self):
        if self.decay not in ("cosine", "linear", "constant"):
            raise UserError(f"the decay of a learning rate must be cosine, linear or constant, got {self.decay!r}")

    def schedule(self, steps: int, batch_size: int) -> optax.Schedule:
        warmup = min(max(self.warmup // batch_size, 1), steps)
        rest, end = max(steps - warmup, 1), self.learning_rate * self.final
        after = {"cosine": optax.cosine_decay_schedule(self.learning_rate, rest, self.final),
                 "linear": optax.linear_schedule(self.learning_rate, end, rest),
                 "constant": optax.constant_schedule(self.learning_rate)}[self.decay]
        return optax.join_schedules([optax.linear_schedule(0, self.learning_rate, warmup), after], [warmup])

    def build(self, steps: int, batch_size: int) -> optax.GradientTransformation:
        adamw = optax.adamw(self.schedule(steps, batch_size), *self.betas, weight_decay=self.weight_decay)
        return optax.chain(optax.clip_by_global_norm(self.clip), adamw) if self.clip else adamw
