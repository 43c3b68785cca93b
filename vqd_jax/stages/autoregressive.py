"""Stage 2 without diffusion: the exact likelihood of the tokens, one after the other. The baseline
that diffusion is compared with.

It shares the diffusion stage's config sections, data order and dropped captions, so that the
network is all that differs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqd_jax.core.shapes import Logits, PRNGKey, PRNGKeys, TextIds, Tokens
from vqd_jax.models.autoregressive import Autoregressive
from vqd_jax.models.conditioning import ClassConditioner, Conditioner, NoConditioner
from vqd_jax.runtime.sharding import Rows
from vqd_jax.samplers.autoregressive import AutoregressiveSampler, Predict
from vqd_jax.samplers.base import Constraint
from vqd_jax.samplers.guidance import StaticGuidance, ramp_scale
from vqd_jax.stages.diffusion import Conditioning, DiffusionStage, frozen_encoder
from vqd_jax.stages.vqvae import VQVAEStage


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoregressiveStage:
    """The loss over `params` = {"autoregressive", "conditioner"}; methods as in
    `train.diffusion.DiffusionStage`.
    """

    network: Autoregressive
    conditioner: Conditioner | ClassConditioner | NoConditioner
    codec: VQVAEStage
    drop_caption: float

    def init(self, key: PRNGKey, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        text_key, model_key = jax.random.split(key)
        ids, drop = batch["text"][:1], jnp.zeros(1, bool)
        params = {"conditioner": self.conditioner.init(text_key, ids, drop).get("params", {})}
        before = jnp.zeros((1, math.prod(self.network.grid)), jnp.int32)
        params["autoregressive"] = self.network.init(
            model_key, before, *self.condition(params, ids, drop)
        )["params"]
        return params, {}

    def condition(self, params: Any, ids: TextIds, drop: Any) -> tuple[Any, Any]:
        """The condition and its mask for the network."""
        return self.conditioner.apply({"params": params.get("conditioner", {})}, ids, drop)

    watched = "loss"

    @property
    def tokens(self) -> int:
        return math.prod(self.network.grid)

    @property
    def unchanged(self) -> Callable[[Any], Any] | None:
        return frozen_encoder(self.conditioner)

    def weights_of(self, params: dict[str, Any], extra: Any) -> dict[str, Any]:
        return params

    def from_weights(self, weights: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return weights, {}

    def loss(
        self,
        params: Any,
        extra: Any,
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
        z = (
            batch["tokens"]
            if "tokens" in batch
            else self.codec.encode(frozen, batch["image"], branch(4))
        )
        drop = jax.vmap(lambda k: jax.random.bernoulli(k, self.drop_caption))(branch(2))
        logits = self.predict(params, z, batch["text"], drop, branch(3)[0])
        loss = _nats(logits, z).mean()
        return loss, ({}, {"loss": loss, "accuracy": (logits.argmax(-1) == z).mean()})

    def update_extra(
        self, extra: Any, aux: dict[str, Any], key: PRNGKey, step: Any, axis: str | None
    ) -> tuple[Any, dict[str, Any]]:
        return extra, {}

    def predict(
        self, params: Any, z: Tokens, ids: TextIds, drop: Any, dropout_key: PRNGKey | None = None
    ) -> Logits:
        """Logits of each token from those before it; dropout acts only with a key."""
        before = jnp.pad(z[:, :-1], ((0, 0), (1, 0)), constant_values=self.network.codes)
        rngs = {} if dropout_key is None or not self.network.dropout else {"dropout": dropout_key}
        return self.network.apply(
            {"params": params["autoregressive"]},
            before,
            *self.condition(params, ids, drop),
            deterministic=not rngs,
            rngs=rngs,
        )[0]

    def bound(
        self, params: Any, keys: PRNGKeys, z_0: Tokens, ids: TextIds, draws: int
    ) -> Float[Array, " b"]:
        """-log p of the tokens given the captions per token in nats for each row: exact, `keys` and
        `draws` change nothing.
        """
        return _nats(self.predict(params, z_0, ids, jnp.zeros(z_0.shape[0], bool)), z_0).mean(-1)

    def sample(
        self,
        params: Any,
        keys: PRNGKeys,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        sampler: AutoregressiveSampler,
        static_guidance: StaticGuidance,
        *,
        constraint: Constraint | None = None,
        trace: bool = False,
    ) -> Any:
        """Tokens (b, n) for each image's prompts; `knobs` as in `DiffusionStage.sample`."""
        predict = self.predictor(params, conditions, dynamic, static_guidance)
        return sampler(
            keys, predict, self.empty(keys), self.network.codes, constraint=constraint, trace=trace
        )

    def empty(self, keys: PRNGKeys) -> Tokens:
        """k everywhere."""
        return jnp.full(
            (keys.shape[0], math.prod(self.network.grid)), self.network.codes, jnp.int32
        )

    def predictor(
        self,
        params: Any,
        conditions: Conditioning,
        dynamic: dict[str, Any],
        static_guidance: StaticGuidance,
    ) -> Predict:
        """What the sampler calls, after guidance, temperature and truncation; the texts are encoded
        once, here.
        """
        ids, drop = conditions.ids, conditions.drop
        ids, drop = (ids, drop) if static_guidance.guided else (ids[:-1], drop[:-1])
        condition = self.condition(params, ids.reshape(drop.size, -1), drop.reshape(-1))
        n, count = math.prod(self.network.grid), ids.shape[0]

        def predict(past: Any, before: Any, place: Any) -> tuple[Logits, Any]:
            rows = jnp.tile(before, count)[:, None]
            logits, aux = self.network.apply(
                {"params": params["autoregressive"]}, rows, *condition, place, past
            )
            live = jnp.full(before.shape, place / n)
            scales = dynamic["scales"]
            if (
                static_guidance.guided and static_guidance.guidance_below < 1
            ):  # a scale of 1 until then
                scales = jnp.where(
                    1 - live <= static_guidance.guidance_below,
                    scales,
                    ramp_scale(scales, jnp.zeros_like(live)),
                )
            logits = static_guidance.combine(
                logits.reshape(count, -1, *logits.shape[1:]),
                scales,
                live,
                guided=static_guidance.guided,
            )
            return static_guidance.shape(
                logits, dynamic["temperature"], dynamic["top_p"]
            ), self.network.room(aux) if past is None else aux

        return predict


TokenStage = DiffusionStage | AutoregressiveStage


def _nats(logits: Logits, z: Tokens) -> Float[Array, "b n"]:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), z[..., None], axis=-1)[..., 0]
