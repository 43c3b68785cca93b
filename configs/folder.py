"""Your own captioned images in a folder: img.png + img.txt, or metadata.jsonl, or captions.csv.

  python -m vqd_jax.main --config=configs/folder.py --config.folder.path=DIR --workdir=runs/mine
  python -m vqd_jax.main --config=configs/folder.py:cpu --config.folder.path=DIR --workdir=runs/mine
  python -m vqd_jax.main --config=configs/folder.py:adapter --config.init_from=WORKDIR \
      --config.folder.path=DIR

`vqd prepare` with the same flags packs the images beforehand and lists the ones it cannot use.

Hardware and hours: sizes and training lengths are first guesses for some thousand images on one
GPU, run only at small sizes on a CPU. Expected metric: watch the held-out bound in metrics.jsonl.

`cpu` is for a few hundred images. Measured on two cores of an AMD EPYC, Python 3.12, with 707
training images of `tuxpaint-stamps-default`, photographs and drawings: codec 18 minutes, PSNR
22.5 dB on held-out images; denoiser 42 minutes; 78 % of 256 training captions give the right image
(retrieval@1; the codec's ceiling is 91 %).

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
    c.codebook.decay = 0.97
    c.codebook.restart_every = 25
    c.vqvae_loss.lpips = 0.3
    c.learned_text.length = 32
    c.preview.prompts = ()
    return with_variant(c, variant, {"": gpu, "cpu": cpu, "adapter": adapter})


def gpu(c):
    c.vqvae.channels = 96
    c.vqvae.multipliers = (1, 2, 2)
    c.codebook.codes = 1024
    c.vqvae_train.examples = 400_000
    c.denoiser.layers = 8
    c.denoiser.width = c.learned_text.width = 256
    c.denoiser.heads = c.learned_text.heads = 8
    c.diffusion_train.examples = 1_000_000


def cpu(c):
    c.data.drop_words = 0.2
    c.vqvae.patch_size = 4
    c.codebook.groups = 2
    c.vqvae_loss.lpips_examples = 8
    c.vqvae_optim.muon = 3e-3
    c.vqvae_train.batch_size = 32
    c.vqvae_train.examples = 40_000
    c.denoiser.layers = 4
    c.denoiser.head = "tied"
    c.learned_text.layers = 0
    c.diffusion_loss.auxiliary = 0.03
    c.diffusion_optim.muon = 4e-3
    c.diffusion_train.batch_size = 64
    c.diffusion_train.examples = 240_000
    c.held_out.examples, c.held_out.draws = 128, 2
    c.sampling.guidance, c.sampling.temperature = 1.0, 0.7


def adapter(c):
    gpu(c)
    c.adapter.rank, c.adapter.kernels = 8, "all"
    c.folder.held_out_items = 0.0
    c.diffusion_train.batch_size, c.diffusion_train.examples = 16, 9_600
    c.diffusion_train.log_every = 800
    c.diffusion_train.evaluate_every = c.diffusion_train.save_every = 4_800
    c.diffusion_optim.learning_rate, c.diffusion_optim.warmup = 3e-3, 320
