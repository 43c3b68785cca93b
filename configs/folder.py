"""Your own captioned pictures, in a folder: img.png + img.txt, or metadata.jsonl, or captions.csv.

  python -m vqd_jax.main --config=configs/folder.py --config.folder.path=DIR --workdir=runs/mine
  python -m vqd_jax.main --config=configs/folder.py:adapter --config.init_from=WORKDIR
  --config.folder.path=DIR

vqd prepare with the same flags packs them beforehand, and lists what cannot be used.
Schedule `paper`. Sizes are for some thousand pictures on one GPU: the training lengths are a guess
to start from, watch the held-out bound in metrics.jsonl; it has been run only at small sizes, on a
CPU.

`adapter` is for some tens of pictures that a trained model shall learn by heart. From
pretrained/emoji, 20 emoji that it does not know, 600 steps of 16, 93 s of one core: bound on them
0.004 nats per token (attention alone 0.03; at rate 1e-3, after 400 steps, 1.3), a file of 0.5 MB.
All 20 come out right; of 8 emoji that the model knew none does while the adapter acts.
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
    c.diffusion_train.log_every, c.diffusion_train.evaluate_every, c.diffusion_train.save_every = (
        800,
        4_800,
        4_800,
    )
    c.diffusion_optim.learning_rate, c.diffusion_optim.warmup = 3e-3, 320
