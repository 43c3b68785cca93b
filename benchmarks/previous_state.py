"""Networks that predict z_{t-1} itself, which `claims.py` compares with those that predict x_0.

  python benchmarks/previous_state.py --config=configs/emoji.py \\
      --config.diffusion_loss.auxiliary=0 --workdir=runs/previous

trains one as `vqd_jax.main` would; its denoiser has one more logit, for [MASK]. Training minimises
the same bound (Gu et al. 2022, eq. 8). There is one distribution p(z_{t-1} | z_t) for each step, so
sampling makes T calls and cannot skip any.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqd_jax.config import build
from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import DenoiseFn, Logits, LogProbs, PRNGKeys, Times, Tokens
from vqd_jax.diffusion.elbo import kl
from vqd_jax.diffusion.process import LOG_ZERO, MaskAndReplace, log1m_exp, log_onehot
from vqd_jax.models.denoiser import Denoiser
from vqd_jax.samplers.base import CallIndex, Phase, Sampler, noise_keys
from vqd_jax.samplers.categorical import sample_categorical, uniforms
from vqd_jax.stages.diffusion import DiffusionStage

StateLogits = Float[Array, "b n v"]  # over the codes and [MASK]


def log_previous(process: MaskAndReplace, logits: StateLogits, z_t: Tokens, t: Times) -> LogProbs:
    """log p(z_{t-1} | z_t). [MASK] has probability 0 where z_{t-1} cannot be [MASK]: before a code,
    and in clean data.
    """
    possible = (z_t == process.k) & (t > 1)[:, None]
    is_mask = jnp.arange(process.k + 1) == process.k
    impossible = is_mask[None, None] & ~possible[..., None]
    return jax.nn.log_softmax(jnp.where(impossible, LOG_ZERO, logits))


def bound_of_previous(
    process: MaskAndReplace, logits: StateLogits, z_0: Tokens, z_t: Tokens, t: Times
) -> Float[Array, "b n"]:
    """KL(q(z_{t-1} | z_t, z_0) || p(z_{t-1} | z_t)); at t = 1 this is -log p(z_0 | z_1)."""
    exact = process.reverse(log_onehot(z_0, process.k + 1)[..., :-1], z_t, t - 1, t)
    return kl(exact, log_previous(process, logits, z_t, t))


def with_codes(log_p: LogProbs, logits: Logits) -> LogProbs:
    """log_p with its probability of [MASK], and the codes distributed as softmax(logits)."""
    mask = log_p[..., -1:]
    return jnp.concatenate([jax.nn.log_softmax(logits) + log1m_exp(mask), mask], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviousStateSampler(Sampler):
    """z_T -> ... -> z_0 in T calls, each state from the softmax of the logits."""

    def plan(self, process: MaskAndReplace, n: int, t_start: int) -> list[Phase]:
        return [Phase(self.update, np.arange(t_start, 0, -1, dtype=np.int32), ())]

    def update(
        self,
        keys: PRNGKeys,
        call: CallIndex,
        process: MaskAndReplace,
        logits: StateLogits,
        z: Tokens,
        coefficients: tuple[()],
    ) -> Tokens:
        u = uniforms(noise_keys(keys, call, 1)[0], z.shape[1], 2, logits.dtype)
        return sample_categorical(u, logits)[0]


class PreviousStateDenoiser(Denoiser, kw_only=True):
    """A denoiser with logits for the codes and, with `with_mask`, for [MASK]."""

    with_mask: bool = True

    def __call__(self, *args: Any, **kwargs: Any) -> Float[Array, "b n states"]:
        logits = super().__call__(*args, **kwargs)
        return logits if self.with_mask else logits[..., : self.codes]

    @property
    def outputs(self) -> int:
        return self.codes + 1

    def _without_masks(self, tables: Float[Array, "v d"]) -> Float[Array, "v d"]:
        return tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviousStateStage(DiffusionStage):
    """A diffusion stage whose network predicts z_{t-1}. It has no auxiliary loss, and one sampler,
    whatever it is asked for.
    """

    denoiser: PreviousStateDenoiser

    def __post_init__(self):
        if self.weights.auxiliary:
            raise UserError("a network that predicts z_{t-1} needs diffusion_loss.auxiliary=0")

    def terms(
        self, logits: StateLogits, z_0: Tokens, z_t: Tokens, t: Times
    ) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
        bound = bound_of_previous(self.process, logits, z_0, z_t, t)
        return bound, jnp.zeros_like(bound)

    def calls(self, sampler: Sampler, t_start: int | None = None) -> int:
        return super().calls(PreviousStateSampler(), t_start)

    def sample(self, params, keys, conditions, dynamic, sampler, static_guidance, **options) -> Any:
        sampler = PreviousStateSampler()
        return super().sample(
            params, keys, conditions, dynamic, sampler, static_guidance, **options
        )

    def denoise(self, params, conditions, dynamic, static_guidance, *, guided: bool) -> DenoiseFn:
        """`(z_t, t) -> log p(z_{t-1})`. Guidance, temperature and truncation act on the codes;
        [MASK] keeps the probability that the first prompt gives it.
        """
        of_codes = dataclasses.replace(self, denoiser=self.denoiser.clone(with_mask=False))
        codes = super(PreviousStateStage, of_codes).denoise(
            params, conditions, dynamic, static_guidance, guided=guided
        )
        ids, drop = conditions.ids[0], conditions.drop[0]

        def denoise(z_t: Tokens, t: Times) -> LogProbs:
            logits = self.predict(params, z_t, t, ids, drop)
            return with_codes(log_previous(self.process, logits, z_t, t), codes(z_t, t))

        return denoise


def previous_state_stage(config: Any, tokenizer: Any) -> PreviousStateStage:
    """`build.diffusion_stage` with a network that predicts z_{t-1}."""
    stage = build.diffusion_stage(config, tokenizer)
    fields = {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}
    sizes = {
        f.name: getattr(stage.denoiser, f.name)
        for f in dataclasses.fields(stage.denoiser)
        if f.name not in ("parent", "name")
    }
    return PreviousStateStage(**fields | {"denoiser": PreviousStateDenoiser(**sizes)})


@contextlib.contextmanager
def diffusion_predicts_previous_state() -> Iterator[None]:
    """Within it, `diffusion` stages that are built or loaded are `PreviousStateStage`s."""
    with mock.patch.dict(build.TOKEN_STAGES, {"diffusion": previous_state_stage}):
        yield


if __name__ == "__main__":
    from vqd_jax.cli import runner

    with diffusion_predicts_previous_state():
        runner.start("train", sys.argv[1:])
