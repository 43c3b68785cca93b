"""Stage 2 without diffusion, the autoregressive baseline: the exact likelihood of the tokens in
raster order, group by group.

It shares the config sections, the data order and the dropped captions of the diffusion stage, so
only the network differs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from vqd_jax.core.shapes import Logits, Params, PRNGKey, PRNGKeys, TextIds, Tokens
from vqd_jax.models.autoregressive import Autoregressive
from vqd_jax.models.dropout import STREAM
from vqd_jax.runtime.rows import Rows
from vqd_jax.samplers.autoregressive import AutoregressiveSampler, Predict, next_token, start
from vqd_jax.samplers.base import Constraint
from vqd_jax.samplers.guidance import StaticGuidance, ramp_scale
from vqd_jax.stages.token_stage import AnyConditioner, Conditioning, freeze_encoder
from vqd_jax.stages.vqvae import VQVAEStage


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoregressiveStage:
    """The loss over `params` = {"autoregressive", "conditioner"}; `extra` is empty.

    Methods without a docstring are documented in `TokenStage` and `DiffusionStage`.
    """

    network: Autoregressive
    conditioner: AnyConditioner
    codec: VQVAEStage
    drop_caption: float

    process = None
    windowed = False
    watched = "loss"  # the metric that must not spike

    @property
    def tokens(self) -> int:
        return self.network.tokens

    @property
    def positions(self) -> int:
        return self.tokens

    @property
    def dtype(self) -> DTypeLike:
        return self.network.dtype

    @property
    def fixed_sampling(self) -> dict[str, Any]:
        return {"sampler": "autoregressive", "calls": self.tokens}

    def calls(self, sampler: AutoregressiveSampler, t_start: int | None = None) -> int:
        return self.tokens

    def init(self, key: PRNGKey, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        text_key, model_key = jax.random.split(key)
        ids, drop = batch["text"][:1], jnp.zeros(1, bool)
        params = {"conditioner": self.conditioner.init(text_key, ids, drop).get("params", {})}
        before = jnp.zeros((1, self.tokens), jnp.int32)
        params["autoregressive"] = self.network.init(
            model_key, before, *self.condition(params, ids, drop)
        )["params"]
        return params, {}

    def condition(
        self, params: Params, ids: TextIds, drop: Bool[Array, " b"]
    ) -> tuple[Any, Bool[Array, "b m"]]:
        return self.conditioner.apply({"params": params.get("conditioner", {})}, ids, drop)

    @property
    def unchanged(self) -> Callable[[Params], Any] | None:
        return freeze_encoder(self.conditioner)

    def weights_of(self, params: Params, extra: dict[str, Any]) -> Params:
        return params

    def from_weights(self, weights: Params) -> tuple[Params, dict[str, Any]]:
        return weights, {}

    def loss(
        self,
        params: Params,
        extra: dict[str, Any],
        frozen: Params,
        batch: dict[str, Any],
        key: PRNGKey,
        step: Any,
        rows: Rows,
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], dict[str, Any]]]:
        keys = rows.keys(key)
        branch = lambda i: jax.vmap(lambda k: jax.random.fold_in(k, i))(keys)
        if "tokens" in batch:
            z = batch["tokens"]
        else:
            z = self.codec.encode(frozen, batch["image"], branch(4))
        drop = jax.vmap(lambda k: jax.random.bernoulli(k, self.drop_caption))(branch(2))
        dropout = {"dropout_key": jax.random.fold_in(key, STREAM), "dropout_rows": rows.index}
        logits = self.predict(params, z, batch["text"], drop, **dropout)
        loss = _nats(logits, z).mean()
        return loss, ({}, {"loss": loss, "accuracy": (logits.argmax(-1) == z).mean()})

    def update_extra(
        self, extra: dict[str, Any], aux: dict[str, Any], key: PRNGKey, step: Any, axis: str | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return extra, {}

    def predict(
        self,
        params: Params,
        z: Tokens,
        ids: TextIds,
        drop: Bool[Array, " b"],
        dropout_key: PRNGKey | None = None,
        dropout_rows: Int[Array, " b"] | None = None,
    ) -> Logits:
        """Logits of each token given those before it. Dropout is active only with a key and
        `dropout_rows`, the positions of the rows in the global batch.
        """
        before = jnp.pad(z[:, :-1], ((0, 0), (1, 0)), constant_values=self.network.codes)
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return self.network.apply(
            {"params": params["autoregressive"]},
            before,
            *self.condition(params, ids, drop),
            dropout_rows=dropout_rows,
            rngs=rngs,
        )[0]

    def bound(
        self, params: Params, keys: PRNGKeys, z_0: Tokens, ids: TextIds, draws: int
    ) -> Float[Array, " b"]:
        """-log p(z_0 | text) in nats per token. It is exact: `keys` and `draws` are not used."""
        return _nats(self.predict(params, z_0, ids, jnp.zeros(z_0.shape[0], bool)), z_0).mean(-1)

    def sample(
        self,
        params: Params,
        keys: PRNGKeys,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        sampler: AutoregressiveSampler,
        static_guidance: StaticGuidance,
        *,
        constraint: Constraint | None = None,
        trace: bool = False,
    ) -> Any:
        predict = self.predictor(params, conditions, dynamic, static_guidance)
        return sampler(
            keys, predict, self.empty(keys), self.network.codes, constraint=constraint, trace=trace
        )

    def watch(
        self,
        run: Callable[[tuple[int, int] | None, Any], Any],
        params: Params,
        keys: PRNGKeys,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        sampler: AutoregressiveSampler,
        static_guidance: StaticGuidance,
        *,
        constraint: Constraint | None = None,
        t_start: int | None = None,
    ) -> Iterator[Any]:
        state = None  # (keys and values of the calls so far, tokens)
        for i in range(self.tokens - 1):
            state = one_call(
                self, static_guidance, params, keys, conditions, dynamic, constraint, state, i
            )
            yield state[1]
        yield run(None, None)

    def empty(self, keys: PRNGKeys) -> Tokens:
        """k everywhere: no token is drawn yet."""
        return jnp.full((keys.shape[0], self.tokens), self.network.codes, jnp.int32)

    def predictor(
        self,
        params: Params,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        static_guidance: StaticGuidance,
    ) -> Predict:
        """The sampler's `predict`, with guidance, temperature and truncation. The prompts are
        encoded once, here.
        """
        guided = static_guidance.guided
        ids, drop = conditions.ids, conditions.drop
        ids, drop = (ids, drop) if guided else (ids[:-1], drop[:-1])
        condition = self.condition(params, ids.reshape(drop.size, -1), drop.reshape(-1))
        n, prompts = self.tokens, ids.shape[0]

        def predict(past: Any, before: Any, i: Any) -> tuple[Logits, Any]:
            rows = jnp.tile(before, prompts)[:, None]
            logits, new_past = self.network.apply(
                {"params": params["autoregressive"]}, rows, *condition, i, past
            )
            drawn = jnp.full(before.shape, i / n)  # the share of tokens
            scales = dynamic["scales"]
            if guided and static_guidance.guidance_below < 1:
                unguided = ramp_scale(scales, jnp.zeros_like(drawn))
                acts = 1 - drawn <= static_guidance.guidance_below
                scales = jnp.where(acts, scales, unguided)
            logits = logits.reshape(prompts, -1, *logits.shape[1:])
            logits = static_guidance.combine(logits, scales, drawn, guided=guided)
            logits = static_guidance.shape(logits, dynamic["temperature"], dynamic["top_p"])
            return logits, self.network.pad_cache(new_past) if past is None else new_past

        return predict


@functools.partial(jax.jit, static_argnums=(0, 1))
def one_call(stage, static_guidance, params, keys, conditions, dynamic, constraint, state, i):
    """(past, tokens) after network call `i`, from the state before it; None before the first."""
    predict = stage.predictor(params, conditions, dynamic, static_guidance)
    if state is None:
        return start(keys, predict, stage.empty(keys), stage.network.codes, constraint)
    return next_token(keys, predict, state, i, constraint)


def _nats(logits: Logits, z: Tokens) -> Float[Array, "b n"]:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), z[..., None], axis=-1)[..., 0]
