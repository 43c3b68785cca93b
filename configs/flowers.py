"""Oxford-102: flowers with ten captions each, 256 px.

  python -m vqd_jax.main --config=configs/flowers.py                   VQ-Diffusion-B, 389 million
                                                                 parameters, codec first python -m
                                                                 vqd_jax.main
                                                                 --config=configs/flowers.py:small
                                                                 VQ-Diffusion-S, 36 million python
                                                                 -m vqd_jax.main
                                                                 --config=configs/flowers.py:released
                                                                 --config.init_from=DIR goes on from
                                                                 published weights that
                                                                 vqd_jax.models.weights put into DIR

Data: data/flowers with jpg/image_00001.jpg (robots.ox.ac.uk/~vgg/data/flowers/102) and
text_c10/class_00001/image_00001.txt (the captions of reedscot/cvpr2016). CLIP's text tower comes
from the Hugging Face hub, or from the folder that --config.clip_text.folder names.

No config was released for this set, CUB's is taken. Schedule `paper`; `released` has the schedule
  of the released code. Guidance by a learned null, as in Tang et al. 2022. Expected on one H100,
  estimated from counted FLOPs at 40 % of its peak and never run: denoiser 5 hours (7,034 pictures,
  400 epochs), small 3 (800 epochs), layers computed again in the backward pass; codec about 7 more.
  Published FID (Gu et al. 2022): S 14.95, B 14.88, B after pre-training on Conceptual Captions
  14.10. Protocol, as far as it is known: 30,000 pictures from captions of the test part against
  30,000 real ones, over-sampled: vqd evaluate --workdir=runs/flowers --protocol=vqdiffusion-flowers
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "flowers", "reference"
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
