"""MS-COCO 2014: 82,783 training images with five captions each, 256 px.

  python -m vqd_jax.main --config=configs/coco.py            VQ-Diffusion-B, 389 million parameters
  python -m vqd_jax.main --config=configs/coco.py:small      VQ-Diffusion-S, 36 million parameters
  python -m vqd_jax.main --config=configs/coco.py:released --config.init_from=DIR
                                                             fine-tunes published weights, which
                                                             `vqd convert` put into DIR

Data: data/coco with annotations/captions_{train,val}2014.json, train2014/ and val2014/
(cocodataset.org). CLIP's text encoder comes from the Hugging Face hub, or from the folder
--config.clip_text.folder.

Method: schedule `paper` (`released`: the schedule of the released code), guidance with a learned
null as in Tang et al. 2022, layers recomputed in the backward pass.

Hardware: one H100 (80 GB). Hours, estimated from counted FLOPs at 40 % of its peak, never run:
denoiser 78 (414,113 captions, 100 epochs), small 14, codec about 15 more.
On 64 TPU v5e the denoiser takes at least 5.4 hours: its compiler estimates the cycles of all but
the kernels of attention (docs/scaling.md).

Expected metric: FID of Gu et al. 2022: S 30.17, B 19.75, B pre-trained on Conceptual Captions
13.86; of Tang et al. 2022, with a learned null, 8.44 (not reproduced here). Protocol as far as it
is known: 30,000 images for validation captions against 30,000 real ones:

  vqd evaluate --workdir=runs/coco --protocol=vqdiffusion-coco
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "coco", "reference"
    c.data.colour = "raw"  # as the released code reads images
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
