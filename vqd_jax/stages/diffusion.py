"""Stage 2: the denoiser. Variational bound plus auxiliary x_0 term, times drawn by importance (Gu
et al. 2022, eq. 10-12).

A time t is drawn with probability proportional to the root of the mean squared bound seen at t, and
its loss is divided by that probability: the expectation is the sum over all times, the bound itself
plus the auxiliary term.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vqd_jax.core.chunking import map_chunks
from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import DenoiseFn, PRNGKey, PRNGKeys, TextIds, Times, Tokens
from vqd_jax.diffusion.continuous import kernel_at, rate_and_auxiliary
from vqd_jax.diffusion.direct import bound_of_previous, log_previous, with_codes
from vqd_jax.diffusion.elbo import bound_and_auxiliary
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.models.conditioning import ClassConditioner, Conditioner, NoConditioner
from vqd_jax.models.denoiser import Denoiser
from vqd_jax.runtime.sharding import Rows
from vqd_jax.samplers.base import Constraint, Sampler, call_times, sample_loop
from vqd_jax.samplers.guidance import StaticGuidance
from vqd_jax.stages.lora import Adapter
from vqd_jax.stages.vqvae import VQVAEStage


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionLoss:
    """Attributes:
    auxiliary: weight of -log p(x_0) beside the bound (5e-4 in the paper).
    adaptive_auxiliary: multiply it by 2 - (t - 1) / T, as the released code does, whose times begin
    at 0.
    importance: draw t by the history of losses; uniformly otherwise, and until each t has been seen
    often enough.
    drop_caption: share of captions replaced by the null states.
    antithetic: spread the times of a batch evenly over their distribution, from one random offset,
    for less noise.
    continuous: the bound of continuous time instead of that of T steps: times are real numbers, of
      which the network is told the next whole one. The step from 1 to 0 stays whole: below it the
      rate of a replaced token has no bound.
    """

    auxiliary: float
    adaptive_auxiliary: bool
    importance: bool
    drop_caption: float
    antithetic: bool = False
    continuous: bool = False


@flax.struct.dataclass
class LossAwareTimes:
    """Moving average of the squared bound for each t in 1..T (index t - 1), and how often t was
    drawn; both (T,).
    """

    square: Any
    count: Any

    @classmethod
    def empty(cls, T: int) -> "History":
        return cls(square=jnp.zeros(T), count=jnp.zeros(T))

    def probabilities(self) -> Float[Array, " t"]:
        """Of drawing each t; t = 1, whose loss is of another kind, gets the weight of t = 2."""
        weight = jnp.sqrt(self.square + 1e-10) + 1e-4
        weight = weight.at[0].set(weight[min(1, weight.size - 1)])
        uniform = jnp.full_like(weight, 1 / weight.size)
        return jnp.where(self.count.min() > 10, weight / weight.sum(), uniform)

    def update(self, t: Times, bound: Float[Array, " b"], axis: str | None) -> "History":
        """After a batch: blend in the mean square of each t that occurs, one tenth for each
        occurrence.
        """
        aux = jax.nn.one_hot(t - 1, self.square.size, dtype=bound.dtype)
        count, total = aux.sum(0), jnp.square(bound) @ aux
        if axis is not None:
            count, total = jax.lax.psum((count, total), axis)
        blend, mean = 0.9**count, total / jnp.maximum(count, 1)
        return LossAwareTimes(
            square=blend * self.square + (1 - blend) * mean, count=self.count + count
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """`ids` int (c, b, m): the prompts of each image, and last what guidance leads away from; where
    `drop` (c, b) is True, the learned null.
    """

    ids: Any
    drop: Any


def frozen_encoder(conditioner: Any) -> Callable[[Any], Any] | None:
    """Marks the parameters of a text encoder that training leaves alone."""
    frozen = lambda path, _: (
        [getattr(entry, "key", None) for entry in path[:2]] == ["conditioner", "encoder"]
    )
    return (
        functools.partial(jax.tree_util.tree_map_with_path, frozen)
        if getattr(conditioner, "frozen", False)
        else None
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionStage:
    """The denoiser's losses over `params` = {"denoiser", "conditioner"} and `extra` = the history
    of the bound.

    An adapter with a rank adds "adapter" to `params`, and is then all that changes.
    """

    process: MaskAndReplace
    denoiser: Denoiser
    conditioner: Conditioner | ClassConditioner | NoConditioner
    codec: VQVAEStage
    weights: DiffusionLoss
    adapter: Adapter = Adapter()

    def __post_init__(self):
        if self.direct and (self.weights.auxiliary or self.weights.continuous):
            raise UserError(
                "a denoiser that predicts the previous state has no x_0: diffusion_loss needs "
                "auxiliary 0, and not continuous"
            )

    @property
    def direct(self) -> bool:
        """Whether the network predicts z_{t-1} and not x_0."""
        return self.denoiser.predict == "previous"

    def init(self, key: PRNGKey, batch: dict[str, Any]) -> tuple[dict[str, Any], LossAwareTimes]:
        text_key, model_key, *adapter_key = jax.random.split(key, 3 if self.adapter.rank else 2)
        ids, drop = batch["text"][:1], jnp.zeros(1, bool)
        params = {"conditioner": self.conditioner.init(text_key, ids, drop).get("params", {})}
        condition, mask = self.condition(params, ids, drop)
        h, w = self.denoiser.grid
        z = jnp.zeros((1, h * w), jnp.int32)
        params["denoiser"] = self.denoiser.init(
            model_key, z, jnp.ones(1, jnp.int32), condition, mask
        )["params"]
        if self.adapter.rank:
            params["adapter"] = self.adapter.init(*adapter_key, params["denoiser"])
        return params, LossAwareTimes.empty(self.process.T)

    def condition(self, params: Any, ids: TextIds, drop: Any) -> tuple[Any, Any]:
        """The condition and its mask for the denoiser."""
        return self.conditioner.apply({"params": params.get("conditioner", {})}, ids, drop)

    watched = "loss"

    @property
    def tokens(self) -> int:
        return math.prod(self.denoiser.grid)

    @property
    def unchanged(self) -> Callable[[Any], Any] | None:
        others = lambda path, _: path[0].key != "adapter"
        return (
            functools.partial(jax.tree_util.tree_map_with_path, others)
            if self.adapter.rank
            else frozen_encoder(self.conditioner)
        )

    def weights_of(self, params: dict[str, Any], extra: LossAwareTimes) -> dict[str, Any]:
        """What the checkpoint's `weights` item holds: all that sampling needs."""
        return params

    def from_weights(self, weights: dict[str, Any]) -> tuple[dict[str, Any], LossAwareTimes]:
        """(params, extra) from `weights_of`'s tree, with an empty history."""
        return weights, LossAwareTimes.empty(self.process.T)

    def loss(
        self,
        params: Any,
        extra: LossAwareTimes,
        frozen: Any,
        batch: dict[str, Any],
        key: PRNGKey,
        step: Any,
        rows: Rows,
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], dict[str, Any]]]:
        """See `train.step.Trainable`; the batch holds "text" ids and "tokens", or "image" to be
        encoded here.
        """
        keys = rows.keys(key)
        branch = lambda i: jax.vmap(lambda k: jax.random.fold_in(k, i))(keys)
        time_keys, noise_keys, drop_keys, dropout_keys = map(branch, range(4))
        z_0 = (
            batch["tokens"]
            if "tokens" in batch
            else self.codec.encode(frozen, batch["image"], branch(4))
        )
        T, w = self.process.T, self.weights
        p = extra.probabilities() if w.importance else jnp.full(T, 1 / T)
        t = self.times(key, time_keys, p, rows)
        if w.continuous:
            back = jnp.where(
                t > 1,
                jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 1)))(time_keys),
                0.0,
            )
            move = lambda k, z, *time: self.process.move(
                k, z[None], kernel_at(self.process, *(x[None] for x in time))
            )[0]
            z_t = jax.vmap(move)(noise_keys, z_0, t, back)
        else:
            z_t = self.diffuse(noise_keys, z_0, t)
        drop = jax.vmap(lambda k: jax.random.bernoulli(k, w.drop_caption))(drop_keys)
        params = (
            jax.lax.stop_gradient(params) | {"adapter": params["adapter"]}
            if self.adapter.rank
            else params
        )
        logits = self.predict(params, z_t, t, batch["text"], drop, dropout_keys[0])
        bound, auxiliary = self.terms(logits, z_0, z_t, t)
        if w.continuous:
            bound = jnp.where(
                (t > 1)[:, None],
                rate_and_auxiliary(self.process, logits, z_0, z_t, t, back)[0],
                bound,
            )
        bound, auxiliary = bound.mean(-1), auxiliary.mean(-1)
        strength = w.auxiliary * (
            (2 - (t - 1) / T) if w.adaptive_auxiliary else jnp.ones_like(bound)
        )
        correction = 1 / p[t - 1]
        loss = ((bound + strength * auxiliary) * correction).mean()
        hit = (logits[..., : self.process.k].argmax(-1) == z_0).mean()
        metrics = {
            "loss": loss,
            "bound": (bound * correction).mean(),
            "auxiliary": (auxiliary * correction).mean() / T,
            "accuracy": hit,
        }
        return loss, ({"t": t, "bound": jax.lax.stop_gradient(bound)}, metrics)

    def terms(
        self, logits: Float[Array, "b n k"], z_0: Tokens, z_t: Tokens, t: Times
    ) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
        """The bound and the auxiliary term of each token at t; without a prediction of x_0 the
        latter is 0.
        """
        if not self.direct:
            return bound_and_auxiliary(self.process, logits, z_0, z_t, t)
        bound = bound_of_previous(self.process, logits, z_0, z_t, t)
        return bound, jnp.zeros_like(bound)

    def update_extra(
        self, extra: LossAwareTimes, aux: dict[str, Any], key: PRNGKey, step: Any, axis: str | None
    ) -> tuple[LossAwareTimes, dict[str, Any]]:
        return extra.update(aux["t"], aux["bound"], axis), {}

    def times(self, key: PRNGKey, keys: PRNGKeys, p: Float[Array, " t"], rows: Rows) -> Times:
        """A time in 1..T for each of the rows, with probabilities p."""
        T = self.process.T
        if not self.weights.antithetic:
            return 1 + jax.vmap(lambda k: jax.random.choice(k, T, p=p))(keys)
        offset = jax.random.uniform(jax.random.fold_in(key, 2**31 - 1))
        u = (offset + rows.place / rows.total) % 1
        return 1 + jnp.minimum(
            jnp.searchsorted(jnp.cumsum(p), u * p.sum(), side="right"), T - 1
        ).astype(jnp.int32)

    def predict(
        self,
        params: Any,
        z_t: Tokens,
        t: Times,
        ids: TextIds,
        drop: Any,
        dropout_key: PRNGKey | None = None,
    ) -> Float[Array, "b n k"]:
        """Logits of what the network predicts; dropout acts only with a key."""
        condition, mask = self.condition(params, ids, drop)
        rngs = {} if dropout_key is None or not self.denoiser.dropout else {"dropout": dropout_key}
        return self.denoiser.apply(
            {"params": self.kernels(params)},
            z_t,
            t,
            condition,
            mask,
            deterministic=not rngs,
            rngs=rngs,
        )

    def kernels(self, params: Any) -> Any:
        """The denoiser's parameters, with an adapter in its kernels where there is one."""
        return (
            self.adapter.merged(params["denoiser"], params["adapter"])
            if "adapter" in params
            else params["denoiser"]
        )

    def diffuse(self, keys: PRNGKeys, z_0: Tokens, t: Times) -> Tokens:
        """z_t ~ q(z_t | z_0), each row from its own key."""
        return jax.vmap(lambda k, z, u: self.process.diffuse(k, z[None], u[None])[0])(keys, z_0, t)

    def sample(
        self,
        params: Any,
        keys: PRNGKeys,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        sampler: Sampler,
        static_guidance: StaticGuidance,
        *,
        z: Tokens | None = None,
        constraint: Constraint | None = None,
        t_start: int | None = None,
        trace: bool = False,
        window: tuple[Any, Any] | None = None,
    ) -> Any:
        """Tokens (b, n) for each image's prompts, as `samplers.run.run` gives them; from the
        sampler's own start without `z`.

        `knobs`: "scales" (p, b), "temperature" and "top_p".
        """
        n = math.prod(self.denoiser.grid)
        z = sampler.start(keys, self.process, n) if z is None else z
        told = call_times(sampler, self.process, n, t_start)
        guided = static_guidance.guides(1 - np.asarray(self.process.unmasked)[told])
        plain, guiding = (
            self.denoise(params, conditions, dynamic, static_guidance, guided=flag)
            for flag in (False, True)
        )
        return sample_loop(
            sampler,
            keys,
            self.process,
            [guiding if g else plain for g in guided],
            z,
            constraint=constraint,
            t_start=t_start,
            trace=trace,
            window=window,
        )

    def denoise(
        self,
        params: Any,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        static_guidance: StaticGuidance,
        *,
        guided: bool,
    ) -> DenoiseFn:
        """`(z_t, t) -> logits` after guidance, temperature and truncation; the texts are encoded
        once, here.

        They are of x_0; or of z_{t-1}, where all that acts on the codes alone, and [MASK] keeps the
        chance that the prompt gives it.
        """
        ids, drop = conditions.ids, conditions.drop
        ids, drop = (ids, drop) if guided else (ids[:-1], drop[:-1])
        count = ids.shape[0]
        condition, mask = self.condition(params, ids.reshape(drop.size, -1), drop.reshape(-1))
        unmasked, kernels = jnp.asarray(self.process.unmasked, jnp.float32), self.kernels(params)

        condition, mask = (
            x.reshape(*drop.shape, *x.shape[1:]).swapaxes(0, 1) for x in (condition, mask)
        )  # an image's side by side

        def network(z_t: Tokens, t: Times, condition: Any, mask: Any) -> Float[Array, "b p n k"]:
            rows = (x.reshape(x.shape[0] * count, *x.shape[2:]) for x in (condition, mask))
            logits = self.denoiser.apply(
                {"params": kernels}, z_t.repeat(count, 0), t.repeat(count), *rows
            )
            return logits.reshape(-1, count, *logits.shape[1:])

        def denoise(z_t: Tokens, t: Times) -> Float[Array, "b n k"]:
            logits = map_chunks(
                network,
                z_t,
                t,
                condition,
                mask,
                elements=count * z_t.shape[1] * self.process.k,
                least=2 // count,
            )
            logits = logits.swapaxes(0, 1)
            codes = static_guidance.combine(
                logits[..., : self.process.k], dynamic["scales"], unmasked[t], guided=guided
            )
            codes = static_guidance.shape(codes, dynamic["temperature"], dynamic["top_p"])
            return (
                with_codes(log_previous(self.process, logits[0], z_t, t), codes)
                if self.direct
                else codes
            )

        return denoise

    def attention(self, params: Any, z_t: Tokens, t: Times, ids: TextIds) -> Float[Array, "b n m"]:
        """How much each position looks at each token of its text: the weights of cross-attention,
        mean over layers and heads.
        """
        condition, mask = self.condition(params, ids, jnp.zeros(len(ids), bool))
        each = self.denoiser.clone(remat=False, scan=False)  # whose layers tell
        _, told = each.apply(
            {"params": self.kernels(params)}, z_t, t, condition, mask, mutable="intermediates"
        )
        weights = jax.tree.leaves(told["intermediates"])
        return sum(w.mean(1) for w in weights) / len(weights)

    def bound(
        self, params: Any, keys: PRNGKeys, z_0: Tokens, ids: TextIds, draws: int
    ) -> Float[Array, " b"]:
        """Unbiased estimate of T E_t[bound at t] per token in nats for each row, from `draws`
        stratified times a row and its key.
        """
        T, b = self.process.T, z_0.shape[0]

        def one(_, j):
            here = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, j)))(keys)
            u = jax.vmap(jax.random.uniform)(here[:, 0])
            t = 1 + jnp.minimum((T * (j + u) / draws).astype(jnp.int32), T - 1)
            z_t = self.diffuse(here[:, 1], z_0, t)
            logits = self.predict(params, z_t, t, ids, jnp.zeros(b, bool))
            return _, T * self.terms(logits, z_0, z_t, t)[0].mean(-1)

        return jax.lax.scan(one, 0, jnp.arange(draws))[1].mean(0)
