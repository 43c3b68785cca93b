"""Stage 1: the codec. Reconstruction (L1, L2, LPIPS, PatchGAN hinge) plus commitment, and a
codebook learned beside it.

Losses follow Esser et al. 2021; generator and discriminator step together from one forward pass.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt8

from vqd_jax.core.errors import UserError
from vqd_jax.core.shapes import Images, PRNGKey, PRNGKeys
from vqd_jax.models.codebook import Codebook, Codes, nearest, straight_through, usage
from vqd_jax.models.discriminator import PatchGAN, hinge_d, hinge_g
from vqd_jax.models.lpips import LPIPS
from vqd_jax.models.vqvae import VQVAE
from vqd_jax.runtime.rows import Rows, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQVAELoss:
    """Weights of the terms; a weight of 0 switches a term, and its network, off.

    Attributes:
      lpips_examples: the perceptual term looks at this many rows of each device's batch; 0 for all
      of them.
      adversarial_start: examples seen before the discriminator's opinion counts.
      adversarial_adaptive: scale it so that its gradient at the decoder's last layer matches the
      reconstruction's.
    """

    l1: float
    l2: float
    commitment: float
    lpips: float
    lpips_examples: int
    adversarial: float
    adversarial_start: int
    adversarial_adaptive: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQVAEStage:
    """The codec's losses over `params` = {"vqvae", "discriminator"?, "codes"?} and `extra` = the
    codebook's state.
    """

    model: VQVAE
    codebook: Codebook
    discriminator: PatchGAN
    weights: VQVAELoss
    batch_size: int

    def init(self, key: PRNGKey, batch: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """(params, extra); the codes start on vectors of the batch."""
        model_key, book_key, critic_key = jax.random.split(key, 3)
        images = to_float(batch["image"])
        params = {"vqvae": self.model.init(model_key, images[:1])["params"]}
        z = self._encode(params, images)
        codes = self.codebook.init(book_key, z.reshape(-1, z.shape[-1]))
        if self.codebook.update == "gradient":
            params["codes"] = codes.vectors
        if self.weights.adversarial:
            params["discriminator"] = self.discriminator.init(critic_key, images[:1])["params"]
        return params, codes

    unchanged = None  # every parameter is trained
    tokens = 0  # a batch is in parts only where that is asked for
    watched = "l1"  # the loss itself jumps where the adversarial term begins

    def frozen(self) -> dict[str, Any]:
        """The parameters that no gradient changes."""
        if not self.weights.lpips:
            return {}
        from vqd_jax.models.weights.lpips import load_lpips

        return {"lpips": load_lpips()}

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
        """See `train.step.Trainable`; the batch holds {"image": uint8 (b, H, W, 3)}."""
        w, images = self.weights, to_float(batch["image"])
        z = self._encode(params, images)
        vectors = params["codes"] if self.codebook.update == "gradient" else extra.vectors
        index = nearest(jax.lax.stop_gradient(vectors), jax.lax.stop_gradient(z))
        quantised = vectors[index]
        features = self._apply(params, straight_through(z, quantised), "features")
        paint = lambda last: self._apply(
            {"vqvae": params["vqvae"] | {"last": last}}, features, "paint"
        )
        output = paint(params["vqvae"]["last"])

        metrics = {
            "l1": jnp.abs(images - output).mean(),
            "l2": jnp.square(images - output).mean(),
            "commitment": jnp.square(z - jax.lax.stop_gradient(quantised)).mean(),
        }
        reconstruction = lambda output: self._reconstruction(frozen, images, output, rows.micro_batches)
        loss, terms = reconstruction(output)
        loss += w.commitment * metrics["commitment"]
        if self.codebook.update == "gradient":
            metrics["codebook"] = jnp.square(jax.lax.stop_gradient(z) - quantised).mean()
            loss += metrics["codebook"]
        if w.adversarial:
            critic = lambda x, p: self.discriminator.apply({"params": p}, x)
            fixed = jax.lax.stop_gradient(params["discriminator"])
            opinion = hinge_g(critic(output, fixed))
            on = (step * self.batch_size >= w.adversarial_start).astype(jnp.float32)
            scale = w.adversarial * on
            if w.adversarial_adaptive:
                scale *= self._balance(
                    paint,
                    params["vqvae"]["last"],
                    reconstruction,
                    lambda x: hinge_g(critic(x, fixed)),
                    rows,
                )
            judged = hinge_d(
                critic(images, params["discriminator"]),
                critic(jax.lax.stop_gradient(output), params["discriminator"]),
            )
            loss += scale * opinion + on * judged
            metrics |= {"adversarial": opinion, "discriminator": judged, "adversarial_scale": scale}
        metrics |= terms | {"loss": loss}
        return loss, ({"z": jax.lax.stop_gradient(z), "index": index}, metrics)

    def update_extra(
        self, extra: Codes, aux: dict[str, Any], key: PRNGKey, step: Any, axis: str | None
    ) -> tuple[Codes, dict[str, Any]]:
        z, index = aux["z"], aux["index"].reshape(-1)
        return self.codebook.update_codes(
            key, extra, z.reshape(-1, z.shape[-1]), index, step, axis
        ), usage(index, self.codebook.codes, axis)

    def weights_of(self, params: Any, extra: Any) -> dict[str, Any]:
        """What the checkpoint's `weights` item holds: all that encoding and decoding need."""
        vectors = params["codes"] if self.codebook.update == "gradient" else extra.vectors
        return {"vqvae": params["vqvae"], "codes": vectors}

    def from_weights(self, weights: dict[str, Any]) -> tuple[dict[str, Any], Codes]:
        """(params, extra) from `weights_of`'s tree: counts start even, the discriminator is not in
        it.
        """
        if self.weights.adversarial:
            raise UserError(
                "a codec checkpoint with weights only cannot go on training with a discriminator"
            )
        if "remap" in weights or "projection" in weights:
            raise UserError(
                "a converted codec whose codes are remapped or chosen by a projection cannot go "
                "on training"
            )
        vectors, params = weights["codes"], {"vqvae": weights["vqvae"]}
        if self.codebook.update == "gradient":
            params["codes"] = vectors
        return params, Codes(
            vectors=vectors, count=jnp.ones(self.codebook.codes), total=jnp.copy(vectors)
        )

    def encode(
        self, weights: Any, images: UInt8[Array, "b H W 3"], keys: PRNGKeys | None = None
    ) -> Int[Array, "b n"]:
        """uint8 images to tokens; `weights` is what `weights_of` returns, or a converted codec's.

        Converted codecs may choose codes by a "projection" to logits, as a Gumbel quantiser does:
        the likeliest one, or with `keys` a random one, as the released training does; and "remap"
        says which token each of their codes is.
        """
        z = self._encode(weights, to_float(images))
        if "projection" in weights:
            logits = (
                z @ weights["projection"]["kernel"]
                + weights["projection"]["bias"][None, None, None]
            )
            if keys is not None:
                logits += jax.vmap(lambda key, x: jax.random.gumbel(key, x.shape))(keys, logits)
            index = logits.argmax(-1)
        else:
            index = nearest(weights["codes"], z)
        index = weights["remap"][index] if "remap" in weights else index
        return index.reshape(images.shape[0], -1)

    def decode(self, weights: Any, tokens: Int[Array, "b n"]) -> UInt8[Array, "b H W 3"]:
        """Tokens of a square grid, row by row, to uint8 images."""
        return to_uint8(self.paint(weights, tokens))

    def paint(self, weights: Any, tokens: Int[Array, "b n"]) -> Images:
        """Tokens of a square grid to images as the decoder gives them; of the codes that "remap"
        joins, the first is shown.
        """
        side = math.isqrt(tokens.shape[1])
        index = weights["inverse"][tokens] if "inverse" in weights else tokens
        return self._apply(
            weights, weights["codes"][index].reshape(tokens.shape[0], side, side, -1), "decode"
        )

    def _reconstruction(
        self, frozen: Any, images: Images, output: Images, parts: int
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        w = self.weights
        loss, terms = (
            w.l1 * jnp.abs(images - output).mean() + w.l2 * jnp.square(images - output).mean(),
            {},
        )
        if w.lpips:
            rows = -(-w.lpips_examples // parts) or images.shape[0]
            terms["lpips"] = (
                LPIPS().apply({"params": frozen["lpips"]}, images[:rows], output[:rows]).mean()
            )
            loss += w.lpips * terms["lpips"]
        return loss, terms

    def _balance(self, paint, last, reconstruction, opinion, rows) -> Float[Array, ""]:
        """|d reconstruction / d last| / |d opinion / d last| over the global batch, at most 1e4,
        without gradient.
        """
        if rows.micro_batches > 1:
            raise UserError(
                "vqvae_loss.adversarial_adaptive balances by the gradient of the whole batch: "
                "with vqvae_train.accumulate "
                "set it to False"
            )
        norm = lambda f: optax.global_norm(mean(jax.grad(f)(last), rows.axis))
        ratio = norm(lambda p: reconstruction(paint(p))[0]) / (
            norm(lambda p: opinion(paint(p))) + 1e-4
        )
        return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))

    def _encode(self, params: Any, images: Images) -> Float[Array, "b h w z"]:
        return self._apply(params, images, "encode")

    def _apply(self, params: Any, x: Any, method: str) -> Any:
        return self.model.apply({"params": params["vqvae"]}, x, method=method)


def to_float(images: UInt8[Array, "b H W 3"]) -> Images:
    """uint8 to [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Images) -> UInt8[Array, "b H W 3"]:
    """[-1, 1], clipped, to uint8 by rounding."""
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)
