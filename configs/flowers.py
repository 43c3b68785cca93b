"""Oxford-102: 7,034 training images of flowers with ten captions each, 256 px.

  python -m vqd_jax.main --config=configs/flowers.py         VQ-Diffusion-B, 389 million parameters
  python -m vqd_jax.main --config=configs/flowers.py:small   VQ-Diffusion-S, 36 million parameters
  python -m vqd_jax.main --config=configs/flowers.py:released --config.init_from=DIR
                                                             fine-tunes published weights, which
                                                             `vqd convert` put into DIR

Data: data/flowers with jpg/image_00001.jpg (robots.ox.ac.uk/~vgg/data/flowers/102) and
text_c10/class_00001/image_00001.txt (the captions of reedscot/cvpr2016). CLIP's text encoder comes
from the Hugging Face hub, or from the folder --config.clip_text.folder.

Method: no config was released for this data set, so the one for CUB is used. Schedule `paper`
(`released`: the schedule of the released code), guidance with a learned null as in Tang et al.
2022, layers recomputed in the backward pass.

Hardware: one H100 (80 GB). Hours, estimated from counted FLOPs at 40 % of its peak, never run:
denoiser 5 (400 epochs), small 3 (800 epochs), codec about 7 more.
On 64 TPU v5e the denoiser takes at least 0.4 hours: its compiler estimates the cycles of all but
the kernels of attention (docs/scaling.md).

Expected metric: FID of Gu et al. 2022: S 14.95, B 14.88; B pre-trained on Conceptual Captions 14.10
(not reproduced here). Protocol as far as it is known: 30,000 images for test captions against
30,000 real ones, oversampled:

  vqd evaluate --workdir=runs/flowers --protocol=vqdiffusion-flowers
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "flowers", "reference"
    c.data.colour = "raw"  # as the released code reads images
    c.evaluation.name = "vqdiffusion-flowers"
    c.flowers.path = "data/flowers"
    c.process.schedule = "paper"
    c.preview.prompts = (
        "this flower has white petals and a yellow centre",
        "a purple flower with long pointed petals",
        "the petals are pink and ruffled at the edges",
        "an orange flower with dark spots",
    )
    paper.codec(c, 8, 2887)
    paper.text(c)
    return with_variant(c, variant, {"": base, "base": base, "small": small, "released": released})


def base(c):
    paper.base(c)
    paper.lengths(
        c, images=7_034, epochs=400, batch_size=32, warmup=1_000, codec_examples=1_500_000
    )


def small(c):
    paper.small(c)
    paper.lengths(
        c, images=7_034, epochs=800, batch_size=32, warmup=1_000, codec_examples=1_500_000
    )


def released(c):
    base(c)
    paper.released(c)
