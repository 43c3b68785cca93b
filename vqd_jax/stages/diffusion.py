"""Stage 2 by diffusion: the variational bound plus an auxiliary x_0 term (Gu et al. 2022, eq.
10-12), with loss-aware training times.

loss = (bound_t + auxiliary * -log p(x_0)) / p(t), whose expectation over t is the sum over all
times.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from vqd_jax.core.shapes import Params, PRNGKey, PRNGKeys, TextIds, Times, Tokens
from vqd_jax.diffusion.elbo import bound_and_auxiliary
from vqd_jax.models.dropout import STREAM
from vqd_jax.runtime.rows import Rows
from vqd_jax.stages.importance import LossAwareTimes, draw_times
from vqd_jax.stages.sampling import DiffusionSampling
from vqd_jax.stages.token_stage import freeze_encoder
from vqd_jax.stages.vqvae import VQVAEStage


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionLoss:
    """Attributes:
    auxiliary: weight of -log p(x_0) beside the bound (5e-4 in the paper).
    adaptive_auxiliary: multiply it by 2 - (t - 1) / T, as the released code does, whose times start
      at 0.
    importance: draw t with loss-aware probabilities; uniformly otherwise.
    drop_caption: share of captions replaced by the null.
    """

    auxiliary: float
    adaptive_auxiliary: bool
    importance: bool
    drop_caption: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionStage(DiffusionSampling):
    """Training of a denoiser: `params` = {"denoiser", "conditioner"}, `extra` = loss-aware times.

    An adapter with a rank adds "adapter" to `params`, and is then all that is trained.
    """

    codec: VQVAEStage
    weights: DiffusionLoss

    watched = "loss"  # the metric that must not spike

    def init(self, key: PRNGKey, batch: dict[str, Any]) -> tuple[dict[str, Any], LossAwareTimes]:
        """Random (params, extra) for batches like this one."""
        text_key, model_key, *adapter_key = jax.random.split(key, 3 if self.adapter.rank else 2)
        ids, drop = batch["text"][:1], jnp.zeros(1, bool)
        params = {"conditioner": self.conditioner.init(text_key, ids, drop).get("params", {})}
        condition, mask = self.condition(params, ids, drop)
        z, t = jnp.zeros((1, self.tokens), jnp.int32), jnp.ones(1, jnp.int32)
        params["denoiser"] = self.denoiser.init(model_key, z, t, condition, mask)["params"]
        if self.adapter.rank:
            params["adapter"] = self.adapter.init(adapter_key[0], params["denoiser"])
        return params, LossAwareTimes.empty(self.process.T)

    @property
    def dtype(self) -> DTypeLike:
        return self.denoiser.dtype

    @property
    def unchanged(self) -> Callable[[Params], Any] | None:
        """A function that marks the parameters which are not trained, None if all are."""
        if not self.adapter.rank:
            return freeze_encoder(self.conditioner)
        others = lambda path, _: path[0].key != "adapter"
        return functools.partial(jax.tree_util.tree_map_with_path, others)

    def weights_of(self, params: Params, extra: LossAwareTimes) -> Params:
        """The checkpoint's `weights` item: all that sampling needs."""
        return params

    def from_weights(self, weights: Params) -> tuple[Params, LossAwareTimes]:
        """(params, extra) from the tree of `weights_of`; the times start without statistics."""
        return weights, LossAwareTimes.empty(self.process.T)

    def loss(
        self,
        params: Params,
        extra: LossAwareTimes,
        frozen: Params,
        batch: dict[str, Any],
        key: PRNGKey,
        step: Any,
        rows: Rows,
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], dict[str, Any]]]:
        """See `train.step.Trainable`.

        The batch holds "text" ids and either "tokens" or "image", which is encoded here.
        """
        keys = rows.keys(key)
        branch = lambda i: jax.vmap(lambda k: jax.random.fold_in(k, i))(keys)
        time_keys, noise_keys, drop_keys = map(branch, range(3))
        if "tokens" in batch:
            z_0 = batch["tokens"]
        else:
            z_0 = self.codec.encode(frozen, batch["image"], branch(4))

        T, weights = self.process.T, self.weights
        p = extra.probabilities() if weights.importance else jnp.full(T, 1 / T)
        t = draw_times(time_keys, p)
        z_t = self.diffuse(noise_keys, z_0, t)
        drop = jax.vmap(lambda k: jax.random.bernoulli(k, weights.drop_caption))(drop_keys)
        if self.adapter.rank:
            params = jax.lax.stop_gradient(params) | {"adapter": params["adapter"]}
        dropout = {"dropout_key": jax.random.fold_in(key, STREAM), "dropout_rows": rows.index}
        logits = self.predict(params, z_t, t, batch["text"], drop, **dropout)

        bound, auxiliary = (x.mean(-1) for x in self.terms(logits, z_0, z_t, t))
        scale = weights.auxiliary * jnp.ones_like(bound)
        if weights.adaptive_auxiliary:
            scale *= 2 - (t - 1) / T
        correction = 1 / p[t - 1]
        loss = ((bound + scale * auxiliary) * correction).mean()
        metrics = {
            "loss": loss,
            "bound": (bound * correction).mean(),
            "auxiliary": (auxiliary * correction).mean() / T,
            "accuracy": (logits.argmax(-1) == z_0).mean(),
        }
        return loss, ({"t": t, "bound": jax.lax.stop_gradient(bound)}, metrics)

    def update_extra(
        self, extra: LossAwareTimes, aux: dict[str, Any], key: PRNGKey, step: Any, axis: str | None
    ) -> tuple[LossAwareTimes, dict[str, Any]]:
        return extra.update(aux["t"], aux["bound"], axis), {}

    def terms(
        self, logits: Float[Array, "b n k"], z_0: Tokens, z_t: Tokens, t: Times
    ) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
        """(bound, -log p(x_0)) of each token at t in nats."""
        return bound_and_auxiliary(self.process, logits, z_0, z_t, t)

    def predict(
        self,
        params: Params,
        z_t: Tokens,
        t: Times,
        ids: TextIds,
        drop: Bool[Array, " b"],
        dropout_key: PRNGKey | None = None,
        dropout_rows: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b n k"]:
        """Logits of x_0. Dropout is active only with a key and `dropout_rows`, the positions of the
        rows in the global batch.
        """
        condition, mask = self.condition(params, ids, drop)
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return self.denoiser.apply(
            {"params": self.merged(params)},
            z_t,
            t,
            condition,
            mask,
            dropout_rows=dropout_rows,
            rngs=rngs,
        )

    def diffuse(self, keys: PRNGKeys, z_0: Tokens, t: Times) -> Tokens:
        """z_t ~ q(z_t | z_0), each row from its own key."""
        return jax.vmap(lambda k, z, u: self.process.diffuse(k, z[None], u[None])[0])(keys, z_0, t)

    def bound(
        self, params: Params, keys: PRNGKeys, z_0: Tokens, ids: TextIds, draws: int
    ) -> Float[Array, " b"]:
        """Unbiased estimate of the sum over t of the bound at t, in nats per token, from `draws`
        times for each row.

        t = 1, whose term is the largest, is always one of them; the others are stratified over 2,
        ..., T, so `draws` = T takes every time in turn. A single one is uniform over all times.
        """
        T, b = self.process.T, z_0.shape[0]
        # times below `fixed` are always taken
        fixed = 2 if min(draws, T) > 1 else 1
        free, strata = T + 1 - fixed, max(draws + 1 - fixed, 1)

        def one(_, j):
            pairs = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, j)))(keys)
            u = jax.vmap(jax.random.uniform)(pairs[:, 0])
            stratum = j + 1 - fixed
            t = fixed + jnp.minimum((free * (stratum + u) / strata).astype(jnp.int32), free - 1)
            t, weight = jnp.where(stratum < 0, 1, t), jnp.where(stratum < 0, 1.0, free / strata)
            z_t = self.diffuse(pairs[:, 1], z_0, t)
            logits = self.predict(params, z_t, t, ids, jnp.zeros(b, bool))
            return _, weight * self.terms(logits, z_0, z_t, t)[0].mean(-1)

        return jax.lax.scan(one, 0, jnp.arange(draws))[1].sum(0)
