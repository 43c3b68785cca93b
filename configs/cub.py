"""CUB-200-2011: birds with ten captions each, 256 px.

  python -m vqd_jax.main --config=configs/cub.py                   VQ-Diffusion-B, 389 million
                                                                 parameters, codec first python -m
                                                                 vqd_jax.main
                                                                 --config=configs/cub.py:small
                                                                 VQ-Diffusion-S, 36 million python
                                                                 -m vqd_jax.main
                                                                 --config=configs/cub.py:released
                                                                 --config.init_from=DIR goes on from
                                                                 published weights that
                                                                 vqd_jax.models.weights put into DIR

Data: data/CUB-200 with images/<class>/<image>.jpg (Caltech CUB-200-2011) and
text/<class>/<image>.txt (the captions of StackGAN and DF-GAN). CLIP's text tower comes from the
Hugging Face hub, or from the folder that --config.clip_text.folder names.

Schedule `paper`; `released` has the schedule of the released code. Guidance by a learned null, as
  in Tang et al. 2022. Expected on one H100, estimated from counted FLOPs at 40 % of its peak and
  never run: denoiser 6 hours (8,855 pictures, 400 epochs), small 3 (800 epochs), layers computed
  again in the backward pass; codec about 7 more. Published FID (Gu et al. 2022): S 12.97, B 11.94,
  B after pre-training on Conceptual Captions 10.32. Protocol, as far as it is known: 30,000
  pictures from captions of the test part against 30,000 real ones, over-sampled; the best of the
  evaluations at every 30 epochs is reported. One of them is vqd evaluate --workdir=runs/cub
  --protocol=vqdiffusion-cub
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "cub", "reference"
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
