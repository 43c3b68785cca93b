"""Your own captioned pictures, in a folder: img.png + img.txt, or metadata.jsonl, or captions.csv.

  python -m vqd_jax.main --config=configs/folder.py --config.folder.path=DIR --workdir=runs/mine

vqd_jax.prepare with the same flags packs them beforehand, and lists what cannot be used.
Schedule `paper`. Sizes are for some thousand pictures on one GPU: the training lengths are a guess to start from, watch
the held-out bound in metrics.jsonl; it has been run only at small sizes, on a CPU.
"""

from vqd_jax.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source = "folder"
    c.data.image_size = 64
    c.process.schedule = "paper"
    c.vqvae.channels = 96
    c.vqvae.multipliers = (1, 2, 2)
    c.codebook.codes = 1024
    c.codebook.decay = 0.97
    c.codebook.restart_every = 25
    c.vqvae_loss.lpips = 0.3
    c.vqvae_train.examples = 400_000
    c.denoiser.layers = 8
    c.denoiser.width = c.learned_text.width = 256
    c.denoiser.heads = c.learned_text.heads = 8
    c.learned_text.length = 32
    c.diffusion_train.examples = 1_000_000
    c.preview.prompts = ()
    return with_variant(c, variant, {"": lambda c: None})
