"""Trains a config: `python -m vqd_jax.main --config=configs/emoji.py`, the same as `vqd train`."""

from vqd_jax.cli.train import run

if __name__ == "__main__":
    run()
