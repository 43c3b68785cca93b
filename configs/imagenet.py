"""ImageNet: 1.28 million training images of 1,000 classes, 256 px.

  python -m vqd_jax.main --config=configs/imagenet.py        the class model, 518 million parameters
  python -m vqd_jax.main --config=configs/imagenet.py:released --config.init_from=DIR
                                                             fine-tunes published weights, which
                                                             `vqd convert` put into DIR

Data: data/imagenet with train/ and val/, each with a folder per synset (image-net.org).

Method: schedule `paper` (`released`: the schedule of the released code), guidance with a learned
null class.

Hardware: one H100 (80 GB). Hours, estimated from counted FLOPs at 40 % of its peak, never run:
denoiser 80 (100 epochs), codec about 15 more.

Expected metric: FID of Gu et al. 2022: 11.89, with classifier rejection at an acceptance rate of
0.05 5.32; of Tang et al. 2022, with a learned null, 4.83 (not reproduced here; users of the
released weights measured 20). Protocol as far as it is known: 50,000 images against all training
images, after a search for the truncation (r = 0.869):

  vqd evaluate --workdir=runs/imagenet --protocol=vqdiffusion-imagenet
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "imagenet", "reference"
    c.data.colour = "raw"  # as the released code reads images
    c.evaluation.name = "vqdiffusion-imagenet"
    c.imagenet.path = "data/imagenet"
    c.process.schedule = "paper"
    c.preview.prompts = ()
    paper.imagenet(c)
    paper.lengths(
        c, images=1_281_167, epochs=100, batch_size=256, warmup=5_000, codec_examples=3_000_000
    )
    return with_variant(c, variant, {"": lambda c: None, "released": paper.released})
