"""MS-COCO 2014: five captions for each of 82,783 pictures, 256 px.

  python -m vqd_jax.main --config=configs/coco.py                   VQ-Diffusion-B, 389 million
                                                                 parameters, codec first python -m
                                                                 vqd_jax.main
                                                                 --config=configs/coco.py:small
                                                                 VQ-Diffusion-S, 36 million python
                                                                 -m vqd_jax.main
                                                                 --config=configs/coco.py:released
                                                                 --config.init_from=DIR goes on from
                                                                 published weights that
                                                                 vqd_jax.models.weights put into DIR

Data: data/coco with annotations/captions_{train,val}2014.json, train2014/ and val2014/
(cocodataset.org). CLIP's text tower comes from the Hugging Face hub, or from the folder that
--config.clip_text.folder names.

Schedule `paper`; `released` has the schedule of the released code. Guidance by a learned null, as
  in Tang et al. 2022. Expected on one H100, estimated from counted FLOPs at 40 % of its peak and
  never run: denoiser 78 hours (414,113 captions, 100 epochs), small 14, layers computed again in
  the backward pass; codec about 15 more. Published FID (Gu et al. 2022): S 30.17, B 19.75, B after
  pre-training on Conceptual Captions 13.86; with a learned null 8.44 (Tang et al. 2022). Protocol,
  as far as it is known: 30,000 pictures from validation captions against 30,000 real ones: vqd
  evaluate --workdir=runs/coco --protocol=vqdiffusion-coco
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "coco", "reference"
    c.evaluation.name = "vqdiffusion-coco"
    c.coco.path = "data/coco"
    c.process.schedule = "paper"
    c.preview.prompts = (
        "a brown dog catches a frisbee on the beach",
        "a plate with a slice of pizza and a salad",
        "a red double-decker bus in the rain",
        "two zebras under a tree",
    )
    paper.codec(c, 8, 2887)
    paper.text(c)
    return with_variant(c, variant, {"": base, "base": base, "small": small, "released": released})


def base(c):
    paper.base(c)
    paper.lengths(
        c, images=414_113, epochs=100, batch_size=32, warmup=1_000, codec_examples=3_000_000
    )


def small(c):
    paper.small(c)
    paper.lengths(
        c, images=414_113, epochs=100, batch_size=32, warmup=1_000, codec_examples=3_000_000
    )


def released(c):
    base(c)
    paper.released(c)
