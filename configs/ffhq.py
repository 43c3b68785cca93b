"""FFHQ: 70,000 faces, unconditional, 256 px.

  python -m vqd_jax.main --config=configs/ffhq.py            the unconditional model, 411 million
                                                             parameters
  python -m vqd_jax.main --config=configs/ffhq.py:released --config.init_from=DIR
                                                             fine-tunes published weights, which
                                                             `vqd convert` put into DIR

Data: data/ffhq, a folder of images (github.com/NVlabs/ffhq-dataset).

Method: schedule `paper` (`released`: the schedule of the released code). There is no condition, so
there is no guidance.

Hardware: one H100 (80 GB). Hours, estimated from counted FLOPs at 40 % of its peak, never run:
denoiser 12 (300 epochs), codec about 10 more.

Expected metric: FID of Gu et al. 2022: 6.33 (not reproduced here). Protocol as far as it is known:
50,000 images against all training images, after a search for the truncation:

  vqd evaluate --workdir=runs/ffhq --protocol=vqdiffusion-ffhq
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "ffhq", "reference"
    c.data.colour = "raw"  # as the released code reads images
    c.evaluation.name = "vqdiffusion-ffhq"
    c.ffhq.path = "data/ffhq"
    c.process.schedule = "paper"
    c.preview.prompts = ()
    paper.ffhq(c)
    paper.lengths(
        c, images=70_000, epochs=300, batch_size=256, warmup=2_000, codec_examples=2_000_000
    )
    return with_variant(c, variant, {"": lambda c: None, "released": paper.released})
