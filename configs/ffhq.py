"""FFHQ: 70,000 faces, unconditional, 256 px.

  python -m vqd_jax.main --config=configs/ffhq.py                   the unconditional model, 411
                                                                 million parameters, codec first
                                                                 python -m vqd_jax.main
                                                                 --config=configs/ffhq.py:released
                                                                 --config.init_from=DIR goes on from
                                                                 published weights that
                                                                 vqd_jax.models.weights put into DIR

Data: data/ffhq, a folder of pictures (github.com/NVlabs/ffhq-dataset).

Schedule `paper`; `released` has the schedule of the released code. There is no condition, so no
  guidance. Expected on one H100, estimated from counted FLOPs at 40 % of its peak and never run:
  denoiser 12 hours (70,000 pictures, 300 epochs), codec about 10 more. Published FID: 6.33 (Gu et
  al. 2022). Protocol, as far as it is known: 50,000 pictures against all training pictures, after a
  search for the truncation: vqd evaluate --workdir=runs/ffhq --protocol=vqdiffusion-ffhq
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "ffhq", "reference"
    c.evaluation.name = "vqdiffusion-ffhq"
    c.ffhq.path = "data/ffhq"
    c.process.schedule = "paper"
    c.preview.prompts = ()
    paper.ffhq(c)
    paper.lengths(
        c, images=70_000, epochs=300, batch_size=256, warmup=2_000, codec_examples=2_000_000
    )
    return with_variant(c, variant, {"": lambda c: None, "released": paper.released})
