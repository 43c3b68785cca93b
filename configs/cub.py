"""CUB-200-2011: 8,855 training images of birds with ten captions each, 256 px.

  python -m vqd_jax.main --config=configs/cub.py             VQ-Diffusion-B, 389 million parameters
  python -m vqd_jax.main --config=configs/cub.py:small       VQ-Diffusion-S, 36 million parameters
  python -m vqd_jax.main --config=configs/cub.py:released --config.init_from=DIR
                                                             fine-tunes published weights, which
                                                             `vqd convert` put into DIR

Data: data/CUB-200 with images/<class>/<image>.jpg (Caltech CUB-200-2011) and
text/<class>/<image>.txt (the captions of StackGAN and DF-GAN). CLIP's text encoder comes from the
Hugging Face hub, or from the folder --config.clip_text.folder.

Method: schedule `paper` (`released`: the schedule of the released code), guidance with a learned
null as in Tang et al. 2022, layers recomputed in the backward pass.

Hardware: one H100 (80 GB). Hours, estimated from counted FLOPs at 40 % of its peak, never run:
denoiser 6 (400 epochs), small 3 (800 epochs), codec about 7 more.
On 64 TPU v5e the denoiser takes at least 0.4 hours: its compiler estimates the cycles of all but
the kernels of attention (docs/scaling.md).

Expected metric: FID of Gu et al. 2022: S 12.97, B 11.94; B pre-trained on Conceptual Captions 10.32
(not reproduced here). Protocol as far as it is known: 30,000 images for test captions against
30,000 real ones, oversampled; the best of the evaluations at every 30 epochs is reported:

  vqd evaluate --workdir=runs/cub --protocol=vqdiffusion-cub
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "cub", "reference"
    c.data.colour = "raw"  # as the released code reads images
    c.evaluation.name = "vqdiffusion-cub"
    c.cub.path = "data/CUB-200"
    c.process.schedule = "paper"
    c.preview.prompts = (
        "this bird is red with a black face and a short orange bill",
        "a small yellow bird with grey wings",
        "a black bird with a long hooked beak on the water",
        "a blue bird with a white belly",
    )
    paper.codec(c, 8, 2887)
    paper.text(c)
    return with_variant(c, variant, {"": base, "base": base, "small": small, "released": released})


def base(c):
    paper.base(c)
    paper.lengths(
        c, images=8_855, epochs=400, batch_size=32, warmup=1_000, codec_examples=1_500_000
    )


def small(c):
    paper.small(c)
    paper.lengths(
        c, images=8_855, epochs=800, batch_size=32, warmup=1_000, codec_examples=1_500_000
    )


def released(c):
    base(c)
    paper.released(c)
