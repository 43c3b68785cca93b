"""The largest published model on your own captioned pictures, 256 px: that of Tang et al. 2022 for
200 million of them (ITHQ).

  python -m vqd_jax.main --config=configs/ithq.py --config.folder.path=DIR                 1.36
                                                                 thousand million parameters, codec
                                                                 first python -m vqd_jax.main
                                                                 --config=configs/ithq.py:released
                                                                 --config.init_from=DIR goes on from
                                                                 microsoft/vq-diffusion-ithq,
                                                                 converted into DIR

Data: a folder of captioned pictures, as in configs/folder.py; ITHQ itself was not published.

Schedule `paper`; `released` has the schedule of the released code. Guidance by a learned null.
Expected, estimated from counted FLOPs and never run: 7 TFLOP for each picture seen; for the
published 400 million that is 2,000 hours on one H100 at 40 % of its peak. Here: 10 million, 65
hours: layers are computed again in the backward pass, and a batch in eight parts, so that a step
fits into one H100 (the memory, compiled for a CPU in float32, is in results/full_size.json).
Published FID 11.89 on its own data, which nobody else can measure.
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "folder", "reference"
    c.process.schedule = "paper"
    c.preview.prompts = ()
    paper.ithq_codec(c)
    paper.text(c)
    paper.large(c)
    paper.lengths(
        c, images=10_000_000, epochs=1, batch_size=64, warmup=7_000, codec_examples=3_000_000
    )
    c.diffusion_train.accumulate = 8
    c.sampling.guidance = 5.0
    return with_variant(c, variant, {"": lambda c: None, "released": released})


def released(c):
    paper.released(c)
    c.condition.null, c.diffusion_loss.drop_caption = "learned", 0.1
    c.sampling.guidance, c.sampling.top_p = 5.0, 1.0
