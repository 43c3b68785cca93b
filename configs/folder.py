"""Your own captioned images in a folder: img.png + img.txt, or metadata.jsonl, or captions.csv.

  python -m vqd_jax.main --config=configs/folder.py --config.folder.path=DIR --workdir=runs/mine
  python -m vqd_jax.main --config=configs/folder.py:adapter --config.init_from=WORKDIR \
      --config.folder.path=DIR

`vqd prepare` with the same flags packs the images beforehand and lists the ones it cannot use.

Hardware and hours: sizes and training lengths are first guesses for some thousand images on one
GPU, run only at small sizes on a CPU. Expected metric: watch the held-out bound in metrics.jsonl.

`adapter` trains a low-rank adapter (LoRA) that memorises some tens of images. Measured on
pretrained/emoji with 20 emoji that it does not know, 600 steps of 16, 93 s on one CPU core: bound
on them 0.004 nats per token (with adapters of attention alone 0.03; at learning rate 1e-3, after
400 steps, 1.3), a file of 0.5 MB. All 20 are reproduced; of 8 emoji that the model knew none is
while the adapter is on.
"""

from vqd_jax.config.defaults import defaults, with_variant


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
    return with_variant(c, variant, {"": lambda c: None, "adapter": adapter})


def adapter(c):
    c.adapter.rank, c.adapter.kernels = 8, "all"
    c.folder.held_out_items = 0.0
    c.diffusion_train.batch_size, c.diffusion_train.examples = 16, 9_600
    c.diffusion_train.log_every = 800
    c.diffusion_train.evaluate_every = c.diffusion_train.save_every = 4_800
    c.diffusion_optim.learning_rate, c.diffusion_optim.warmup = 3e-3, 320
