"""The largest published model, of Tang et al. 2022, on your own captioned images, 256 px.

  python -m vqd_jax.main --config=configs/ithq.py --config.folder.path=DIR
                                                             1.36 billion parameters
  python -m vqd_jax.main --config=configs/ithq.py:released --config.init_from=DIR
                                                             fine-tunes microsoft/vq-diffusion-ithq,
                                                             which `vqd convert` put into DIR

Data: a folder of captioned images, as for configs/folder.py. ITHQ itself, 200 million images with
captions, was not published.

Method: schedule `paper` (`released`: the schedule of the released code), guidance with a learned
null. Layers are recomputed in the backward pass and a batch is split into eight micro-batches, so
that a step fits into one H100; results/full_size.json has the memory, compiled for a CPU in
float32.

Hardware: one H100 (80 GB). Hours, estimated from counted FLOPs (7 TFLOP per image) at 40 % of its
peak, never run: 65 for the 10 million images here, 2,000 for the published 400 million.

Expected metric: the published FID of 11.89 is for ITHQ, so nobody else can measure it.
"""

from vqd_jax.config import paper
from vqd_jax.config.defaults import defaults, with_variant


def get_config(variant: str = ""):
    c = defaults()
    c.data.source, c.data.transform = "folder", "reference"
    c.data.colour = "raw"  # as the released code reads images
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
