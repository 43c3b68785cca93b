"""Sizes and settings of the published models: Gu et al. 2022, Tang et al. 2022 and their released
code.

Each function sets keys of a config. A codec trained here has as many codes as the released one has
tokens, so that the denoisers have the published numbers of parameters.
"""

from ml_collections import ConfigDict

CLIP = "openai/clip-vit-base-patch32"  # on the Hugging Face hub, or a folder with its files


def codec(c: ConfigDict, factor: int, codes: int) -> None:
    """The VQGAN that downsamples by 8 or 16; here moving averages update its codebook."""
    c.data.image_size = 256
    c.vqvae.channels, c.vqvae.multipliers = 128, {8: (1, 1, 2, 4), 16: (1, 1, 2, 2, 4)}[factor]
    c.vqvae.residual_blocks, c.vqvae.middle_attention = 2, True
    c.vqvae.attention_resolutions = (256 // factor,)
    c.vqvae.resampling, c.vqvae.patch_size, c.vqvae.latent_width = "conv", 1, 256
    c.codebook.codes, c.codebook.width = codes, 256
    c.vqvae_loss.l2, c.vqvae_loss.lpips, c.vqvae_loss.adversarial = 0.0, 1.0, 0.75
    c.vqvae_optim.betas, c.vqvae_optim.weight_decay = (0.5, 0.9), 0.0
    c.vqvae_optim.learning_rate = 1e-4
    c.vqvae_train.batch_size = 32


def ithq_codec(c: ConfigDict) -> None:
    """The codec of the ITHQ model: half as wide, 4096 codes of width 128."""
    codec(c, 8, 4096)
    c.vqvae.channels, c.vqvae.multipliers, c.codebook.width = 64, (1, 2, 4, 8), 128


def denoiser(
    c: ConfigDict, *, layers: int, width: int, mlp_ratio: int = 4, mlp: str = "fc"
) -> None:
    """A denoiser of the given size, with the released loss and optimiser."""
    c.denoiser.layers, c.denoiser.width, c.denoiser.heads = layers, width, 16
    c.denoiser.mlp_ratio, c.denoiser.mlp = mlp_ratio, mlp
    c.diffusion_loss.adaptive_auxiliary = True
    c.diffusion_loss.auxiliary = 5e-4 if c.condition.kind == "text" else 1e-3
    c.diffusion_optim.learning_rate, c.diffusion_optim.decay = 4.5e-4, "cosine"
    c.diffusion_train.ema = 0.9996  # the released 0.99 at every 25th step


def text(c: ConfigDict) -> None:
    """CLIP's text encoder, frozen, and a learned null condition (Tang et al. 2022)."""
    c.condition.kind, c.condition.null = "text", "learned"
    c.text.encoder, c.clip_text.folder = "clip", CLIP
    c.sampling.guidance = 3.0


def small(c: ConfigDict) -> None:
    """VQ-Diffusion-S: 36 million parameters."""
    denoiser(c, layers=18, width=192, mlp_ratio=2, mlp="conv")
    c.denoiser.remat = "products"


def base(c: ConfigDict) -> None:
    """VQ-Diffusion-B: 389 million parameters."""
    denoiser(c, layers=19, width=1024)
    c.denoiser.remat = "products"


def large(c: ConfigDict) -> None:
    """The largest model of Tang et al. 2022: 1.36 billion parameters."""
    denoiser(c, layers=36, width=1408)
    c.denoiser.remat = "products"


def imagenet(c: ConfigDict) -> None:
    """The class model: 518 million parameters, with a learned null class. Its 16x16 tokens use
    position tables of 32x32, as released.
    """
    codec(c, 16, 974)
    c.condition.kind, c.condition.classes, c.condition.null = "class", 1000, "learned"
    denoiser(c, layers=24, width=512, mlp="conv")
    c.denoiser.positions = (32, 32)
    c.sampling.guidance, c.sampling.top_p = 1.5, 0.94


def ffhq(c: ConfigDict) -> None:
    """The unconditional model: 411 million parameters; position tables as for ImageNet."""
    codec(c, 16, 1024)
    c.condition.kind = "none"
    denoiser(c, layers=20, width=512, mlp="conv")
    c.denoiser.positions = (32, 32)
    c.diffusion_loss.drop_caption, c.sampling.guidance, c.sampling.top_p = 0.0, 1.0, 0.86


def lengths(
    c: ConfigDict, *, images: int, epochs: int, batch_size: int, warmup: int, codec_examples: int
) -> None:
    """Lengths of both stages, with `warmup` in steps; logs and checkpoints as often in both."""
    examples = images * epochs
    c.diffusion_train.examples, c.diffusion_train.batch_size = examples, batch_size
    c.diffusion_optim.warmup = warmup * batch_size
    c.vqvae_train.examples, c.vqvae_loss.adversarial_start = codec_examples, codec_examples // 3
    c.vqvae_optim.warmup = 1_000 * c.vqvae_train.batch_size
    for train in (c.vqvae_train, c.diffusion_train):
        train.log_every = 100 * train.batch_size
        train.evaluate_every = train.save_every = max(train.examples // 20, 1)


def released(c: ConfigDict) -> None:
    """Settings for fine-tuning released weights: their schedule, and no learned null condition."""
    c.process.schedule = "released"
    c.condition.null = "empty"
    c.diffusion_loss.drop_caption = 0.0
    c.sampling.guidance, c.sampling.top_p = 1.0, 0.86
