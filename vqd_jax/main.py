"""Training: `python -m vqd_jax.main --config=configs/emoji.py`, the same as `vqd train`."""

import sys

from vqd_jax.cli import runner

if __name__ == "__main__":
    runner.start("train", sys.argv[1:])
