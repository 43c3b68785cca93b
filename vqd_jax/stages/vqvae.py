"""Stage 1, the codec: reconstruction (L1, L2, LPIPS, PatchGAN hinge) plus commitment, and the
codebook.

The losses follow Esser et al. 2021. Generator and discriminator are updated together from one
forward pass.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, DTypeLike, Float, Int, UInt8

from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.core.shapes import Images, Params, PRNGKey, PRNGKeys
from vqd_jax.models.codebook import Codebook, Codes, add, straight_through, usage
from vqd_jax.models.discriminator import PatchGAN, hinge_d, hinge_g
from vqd_jax.models.lpips import LPIPS
from vqd_jax.models.vqvae import VQVAE
from vqd_jax.runtime.rows import Rows, mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQVAELoss:
    """Weights of the terms; a weight of 0 turns a term and its network off.

    Attributes:
      lpips_examples: rows of each device's batch that get the perceptual term; 0 for all.
      adversarial_start: examples seen before the adversarial term is added.
      adversarial_adaptive: scale the term so that its gradient at the decoder's last layer matches
        that of the reconstruction.
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
    """The losses of the codec: `params` = {"vqvae", "discriminator"?, "codes"?}, `extra` = the
    state of the codebook.
    """

    model: VQVAE
    codebook: Codebook
    discriminator: PatchGAN
    weights: VQVAELoss
    pace: Pace

    def init(self, key: PRNGKey, batch: dict[str, Any]) -> tuple[dict[str, Any], Codes]:
        """Random (params, extra); the codes start as vectors of the batch."""
        model_key, codes_key, discriminator_key = jax.random.split(key, 3)
        images = to_float(batch["image"])
        params = {"vqvae": self.model.init(model_key, images[:1])["params"]}
        z = self._encode(params, images)
        codes = self.codebook.init(codes_key, z.reshape(-1, z.shape[-1]))
        if self.codebook.updates == "gradient":
            params["codes"] = codes.vectors
        if self.weights.adversarial:
            params["discriminator"] = self.discriminator.init(discriminator_key, images[:1])[
                "params"
            ]
        return params, codes

    @property
    def dtype(self) -> DTypeLike:
        return self.model.dtype

    unchanged = None  # every parameter is trained
    positions = 0  # no micro-batches by default
    watched = (
        "l1"  # the metric that must not spike; the loss jumps when the adversarial term starts
    )

    def frozen(self) -> dict[str, Any]:
        """Parameters of fixed networks that the loss uses."""
        if not self.weights.lpips:
            return {}
        from vqd_jax.models.weights.lpips import load_lpips

        return {"lpips": load_lpips()}

    def loss(
        self,
        params: Params,
        extra: Codes,
        frozen: Params,
        batch: dict[str, Any],
        key: PRNGKey,
        step: Any,
        rows: Rows,
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], dict[str, Any]]]:
        """See `train.step.Trainable`; the batch holds {"image": uint8 (b, H, W, 3)}."""
        w, images = self.weights, to_float(batch["image"])
        z = self._encode(params, images)
        vectors = params["codes"] if self.codebook.updates == "gradient" else extra.vectors
        indices, residuals = self.codebook.quantise(vectors, z)
        chosen = self.codebook.look_up(vectors, indices)
        quantised = add(chosen)
        features = self._apply(params, straight_through(z, quantised), "features")
        to_image = lambda last: self._apply(
            {"vqvae": params["vqvae"] | {"last": last}}, features, "paint"
        )
        output = to_image(params["vqvae"]["last"])

        metrics = {
            "l1": jnp.abs(images - output).mean(),
            "l2": jnp.square(images - output).mean(),
            "commitment": jnp.square(z - jax.lax.stop_gradient(quantised)).mean(),
        }
        reconstruction = lambda output: self._reconstruction(
            frozen, images, output, rows.micro_batches
        )
        loss, terms = reconstruction(output)
        loss += w.commitment * metrics["commitment"]
        if self.codebook.updates == "gradient":
            errors = [jnp.square(z - codes).mean() for z, codes in zip(residuals, chosen)]
            metrics["codebook"] = add(errors)
            loss += metrics["codebook"]
        if w.adversarial:
            discriminate = lambda x, p: self.discriminator.apply({"params": p}, x)
            fixed = jax.lax.stop_gradient(params["discriminator"])
            adversarial = hinge_g(discriminate(output, fixed))
            on = (self.pace.examples_at(step) >= w.adversarial_start).astype(jnp.float32)
            scale = w.adversarial * on
            if w.adversarial_adaptive:
                scale *= self._adaptive_scale(
                    to_image,
                    params["vqvae"]["last"],
                    reconstruction,
                    lambda x: hinge_g(discriminate(x, fixed)),
                    rows,
                )
            discriminator = hinge_d(
                discriminate(images, params["discriminator"]),
                discriminate(jax.lax.stop_gradient(output), params["discriminator"]),
            )
            loss += scale * adversarial + on * discriminator
            metrics |= {
                "adversarial": adversarial,
                "discriminator": discriminator,
                "adversarial_scale": scale,
            }
        metrics |= terms | {"loss": loss}
        aux = {"z": jnp.stack(residuals, axis=1), "index": jnp.stack(indices, axis=1)}
        return loss, (aux, metrics)

    def update_extra(
        self, extra: Codes, aux: dict[str, Any], key: PRNGKey, step: Any, axis: str | None
    ) -> tuple[Codes, dict[str, Any]]:
        z = rearrange(aux["z"], "b g h w z -> g (b h w) z")
        index = rearrange(aux["index"], "b g h w -> g (b h w)")
        used = [usage(group, self.codebook.codes, axis) for group in index]
        metrics = {name: add([use[name] for use in used]) / len(used) for name in used[0]}
        if self.codebook.groups == 1:
            z, index = z[0], index[0]
        return self.codebook.update_codes(key, extra, z, index, step, axis), metrics

    def weights_of(self, params: Params, extra: Codes) -> dict[str, Any]:
        """The checkpoint's `weights` item: all that encoding and decoding need."""
        vectors = params["codes"] if self.codebook.updates == "gradient" else extra.vectors
        return {"vqvae": params["vqvae"], "codes": vectors}

    def from_weights(self, weights: Params) -> tuple[dict[str, Any], Codes]:
        """(params, extra) from the tree of `weights_of`; the counts of the codes start equal.
        UserError for weights that cannot be trained further.
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
        if self.codebook.updates == "gradient":
            params["codes"] = vectors
        return params, Codes(vectors=vectors, count=jnp.ones(len(vectors)), total=jnp.copy(vectors))

    def encode(
        self, weights: Params, images: UInt8[Array, "b H W 3"], keys: PRNGKeys | None = None
    ) -> Int[Array, "b n"]:
        """uint8 images to tokens; `weights` come from `weights_of` or from a converted codec.

        The tokens of the first group come first, in raster order, then those of the next group.

        Converted codecs may choose codes by a "projection" to logits, as a Gumbel quantiser does:
        the likeliest one, or with `keys` a random one, as the released training does. Their "remap"
        maps codes to tokens.
        """
        z = self._encode(weights, to_float(images))
        if "projection" in weights:
            logits = (
                jnp.matmul(z, weights["projection"]["kernel"], precision="highest")
                + weights["projection"]["bias"][None, None, None]
            )
            if keys is not None:
                logits += jax.vmap(lambda key, x: jax.random.gumbel(key, x.shape))(keys, logits)
            index = logits.argmax(-1)
        else:
            index = jnp.stack(self.codebook.quantise(weights["codes"], z)[0], axis=1)
        index = weights["remap"][index] if "remap" in weights else index
        return index.reshape(images.shape[0], -1)

    def decode(self, weights: Params, tokens: Int[Array, "b n"]) -> UInt8[Array, "b H W 3"]:
        """Tokens of a square grid, as `encode` returns them, to uint8 images."""
        return to_uint8(self.paint(weights, tokens))

    def paint(self, weights: Params, tokens: Int[Array, "b n"]) -> Images:
        """Tokens of a square grid to images in floating point, unclipped. Of the codes that "remap"
        joins, the first is decoded.

        With several groups, tokens that are [MASK] add nothing to the sum of the others.
        """
        groups = self.codebook.groups
        side = math.isqrt(tokens.shape[1] // groups)
        index = weights["inverse"][tokens] if "inverse" in weights else tokens
        indices = jnp.split(index, groups, axis=1)
        z = add(self.codebook.look_up(weights["codes"], indices))
        return self._apply(weights, z.reshape(tokens.shape[0], side, side, -1), "decode")

    def _reconstruction(
        self, frozen: Params, images: Images, output: Images, micro_batches: int
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        w = self.weights
        loss = w.l1 * jnp.abs(images - output).mean() + w.l2 * jnp.square(images - output).mean()
        if not w.lpips:
            return loss, {}
        rows = -(-w.lpips_examples // micro_batches) or images.shape[0]
        lpips = LPIPS(dtype=self.dtype)
        distances = lpips.apply({"params": frozen["lpips"]}, images[:rows], output[:rows])
        return loss + w.lpips * distances.mean(), {"lpips": distances.mean()}

    def _adaptive_scale(
        self,
        to_image: Callable[[Params], Images],
        last: Params,
        reconstruction: Callable[[Images], Any],
        adversarial: Callable[[Images], Float[Array, ""]],
        rows: Rows,
    ) -> Float[Array, ""]:
        """|d reconstruction / d last| / |d adversarial / d last| over the global batch, at most
        1e4, without gradient.
        """
        if rows.micro_batches > 1:
            raise UserError(
                "vqvae_loss.adversarial_adaptive needs the gradient of the whole batch: set it to "
                "False, or vqvae_train.accumulate to 1"
            )
        norm = lambda f: optax.tree.norm(mean(jax.grad(f)(last), rows.axis))
        reconstruction_norm = norm(lambda p: reconstruction(to_image(p))[0])
        adversarial_norm = norm(lambda p: adversarial(to_image(p)))
        ratio = reconstruction_norm / (adversarial_norm + 1e-4)
        return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))

    def _encode(self, params: Params, images: Images) -> Float[Array, "b h w z"]:
        return self._apply(params, images, "encode")

    def _apply(self, params: Params, x: Any, method: str) -> Any:
        return self.model.apply({"params": params["vqvae"]}, x, method=method)


def to_float(images: UInt8[Array, "b H W 3"]) -> Images:
    """uint8 to [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Images) -> UInt8[Array, "b H W 3"]:
    """[-1, 1], clipped, to uint8 by rounding."""
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)
