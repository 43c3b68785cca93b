"""Captioned emoji in three drawing styles: the default, for a machine with 2 cores and no GPU.

  python -m vqd_jax.main --config=configs/emoji.py                 300 emoji, 32 px, 2 cores for 20
                                                                   minutes python -m vqd_jax.main
                                                                   --config=configs/emoji.py:pretrained
                                                                   the same 300, 2 cores for 90
                                                                   minutes; made pretrained/emoji
                                                                   python -m vqd_jax.main
                                                                   --config=configs/emoji.py:gpu
                                                                   every emoji, 64 px, one GPU;
                                                                   never run python -m vqd_jax.main
                                                                   --config=configs/emoji.py:autoregressive
                                                                   the default's autoregressive
                                                                   twin, on the same tokens with
                                                                   --workdir=runs/emoji

Measured for the default on 2 idle cores, from a fresh clone to pictures, installation included:
  Python 3.12 (jax 0.12.0.1)   20.4 minutes: installation 0.9, data 0.3, codec 6.4, denoiser 12.8
  Python 3.11 (jax 0.10.2)     22.0 minutes: installation 0.9, data 0.3, codec 6.9, denoiser 13.9
  codec 22.5 dB on held-out pictures; retrieval@1 86 % on seen cells (ceiling 94 %), style 90 % (94
  %); 12 % and 40 % on held-out cells; on 3.11 22.5 dB, 87 % (92 %), 89 % (93 %); 13 % and 44 %

Measured for `pretrained` on 2 cores with Python 3.12, beside other work at times: 93 minutes, codec
  31, denoiser 62 codec 22.3 dB on held-out pictures; retrieval@1 99.4 % on seen cells (ceiling 99.6
  %), style 99.8 %; 28 % and 26 % on held-out cells Words dropped (0.2 to 0.4), weight decay (0.045
  to 0.3) and length did it: 1000 steps with 0.5 and 0.5 had 13 % and 9 %

What made it fast, on 200 emoji, everything else equal:
  AdamW, auxiliary 5e-4         500 steps of 64: bound on train 4.41 nats per token; codec after 450
  steps of 32: 19.9 dB, LPIPS 0.257 auxiliary 0.02                4.14 Muon 2e-3
  3.99 both                          3.31                                                   codec
  with Muon 3e-3: 21.2 dB, LPIPS 0.184 text layers 2, whole captions     after 1875 steps
  retrieval@1 96 % seen, 6 % of 64 held-out cells no text layers, drop_words 0.2    after 800 steps
  72 % seen, 19 % held out

Schedule `paper`: at T = 100, 90 % of the tokens are masked and 10 % replaced. Skin tones, flags and
gendered variants of persons are left out in all three.
"""

from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.process.schedule = "paper"
    c.emoji.people = False
    c.data.drop_words = 0.2
    c.learned_text.layers = (
        0  # with words that speak for themselves, unseen pairs of emoji and style come out better
    )
    c.codebook.decay = 0.97
    c.codebook.restart_every = 25
    c.vqvae_optim.muon = 3e-3
    c.diffusion_optim.muon = 4e-3
    c.diffusion_loss.auxiliary = 0.03
    c.preview.prompts = PROMPTS
    c.sampling.guidance = 2.0
    c.sampling.temperature = 0.9
    return with_variant(
        c,
        variant,
        {"": small, "pretrained": pretrained, "gpu": gpu, "autoregressive": autoregressive},
    )


# Free text, fixed before any training: no such picture is in the data.
PROMPTS = (
    "a google style emoji of a blue apple",
    "a twitter style emoji of a green heart on fire",
    "an openmoji style emoji of a purple cat face",
    "a google style emoji of a happy teapot",
    "a twitter style emoji of a yellow car",
    "an openmoji style emoji of a red fish",
    "a google style emoji of a pizza with flowers",
    "a twitter style emoji of a sad sun",
)


def two_cores(c):
    """What the variants without an accelerator share."""
    c.vqvae_train.batch_size = 32
    c.vqvae_loss.lpips = 0.3
    c.vqvae_loss.lpips_examples = 8
    c.diffusion_train.batch_size = 64
    c.emoji.max_items = 300
    c.denoiser.layers = 4
    c.denoiser.width = c.learned_text.width = 160
    c.denoiser.heads = c.learned_text.heads = 5
    c.held_out.examples, c.held_out.draws = 128, 2


def small(c):
    two_cores(c)
    c.vqvae_train.examples = 32_000
    c.diffusion_train.examples = 120_000
    c.diffusion_train.evaluate_every = 64_000


def autoregressive(c):
    small(c)
    c.stages = ("vqvae", "autoregressive")


def pretrained(c):
    two_cores(c)
    c.vqvae_train.examples = 128_000
    c.data.drop_words = 0.4
    c.diffusion_optim.weight_decay = 0.3
    c.diffusion_train.examples = 544_000
    c.diffusion_train.evaluate_every = 128_000


def gpu(c):
    c.data.image_size = 64
    c.vqvae.channels = 96
    c.codebook.codes = 1024
    c.vqvae_loss.lpips = 0.5
    c.vqvae_loss.adversarial = 0.1
    c.vqvae_loss.adversarial_start = 400_000
    c.vqvae_train.batch_size = 128
    c.vqvae_train.examples = 800_000
    c.denoiser.layers = 10
    c.denoiser.width = c.learned_text.width = 384
    c.denoiser.heads = c.learned_text.heads = 6
    c.diffusion_train.batch_size = 256
    c.diffusion_train.examples = 2_500_000
    for train in (c.vqvae_train, c.diffusion_train):
        train.log_every, train.evaluate_every, train.save_every = 12_800, 204_800, 204_800
