"""ImageNet: 1,000 classes, 256 px.

  python -m vqd_jax.main --config=configs/imagenet.py                   the class model, 518 million
                                                                 parameters, codec first python -m
                                                                 vqd_jax.main
                                                                 --config=configs/imagenet.py:released
                                                                 --config.init_from=DIR goes on from
                                                                 published weights that
                                                                 vqd_jax.models.weights put into DIR

Data: data/imagenet with train/ and val/, a folder for each synset (image-net.org).

Schedule `paper`; `released` has the schedule of the released code. Guidance by a learned null
  class. Expected on one H100, estimated from counted FLOPs at 40 % of its peak and never run:
  denoiser 80 hours (1.28 million pictures, 100 epochs), codec about 15 more. Published FID: 11.89
  (Gu et al. 2022), 5.32 with classifier rejection at an acceptance rate of 0.05; 4.83 with a
  learned null (Tang et al. 2022). Users measured 20 with the released weights. Protocol, as far as
  it is known: 50,000 pictures against all training pictures, after a search for the truncation (r =
  0.869): vqd evaluate --workdir=runs/imagenet --protocol=vqdiffusion-imagenet
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "imagenet", "reference"
    c.evaluation.name = "vqdiffusion-imagenet"
    c.imagenet.path = "data/imagenet"
    c.process.schedule = "paper"
    c.preview.prompts = ()
    paper.imagenet(c)
    paper.lengths(
        c, images=1_281_167, epochs=100, batch_size=256, warmup=5_000, codec_examples=3_000_000
    )
    return with_variant(c, variant, {"": lambda c: None, "released": paper.released})
