"""The best checkpoints of an experiment: what its evaluations must have for them, and the whole of it
with images that are drawn and retrieved.
"""

import dataclasses

import jax
import numpy as np
import pytest

from helpers import killing
from helpers.commands import folder_of_emoji
from helpers.killing import STAGES, link_emoji
from vqd_jax.core.errors import UserError
from vqd_jax.data.splits import CELLS
from vqd_jax.eval import validation
from vqd_jax.inference import pipeline
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import read_metrics
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.train.experiment import Experiment


def config(**changed):
    """Four steps of each stage, evaluated after each."""
    out = killing.config(steps=4, **changed)
    for stage in STAGES:
        train = out[f"{stage}_train"]
        train.evaluate_every = train.batch_size
    return out


@pytest.fixture
def workdir(tmp_path):
    return link_emoji(tmp_path / "run")


@pytest.mark.parametrize(
    "changed,sentence",
    [
        (
            dict(vqvae_train__best="lpips"),
            "vqvae_train.best must be one of psnr, ssim or empty, got 'lpips'",
        ),
        (
            dict(vqvae_train__best="psnr", held_out__examples=0),
            "vqvae_train.best must be a measure, with held_out.examples > 0, or empty",
        ),
        (
            dict(diffusion_train__best="retrieval@1"),
            "diffusion_train.best must be a measure, with held_out.retrieval > 0, or empty",
        ),
        (
            dict(diffusion_train__best="bits_per_token_held_out_cells", held_out__retrieval=4),
            "diffusion_train.best must be one of retrieval@1, retrieval@5, style_accuracy or empty",
        ),
        (dict(held_out__retrieval=-1), "held_out.retrieval must not be negative"),
        (dict(held_out__retrieval=4, condition__kind="none"), "draws images of captions"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence_at_the_start(tmp_path, changed, sentence):
    with pytest.raises(UserError, match=sentence):
        Experiment(config(**changed), tmp_path / "run")
    assert not [*tmp_path.iterdir()]


def test_without_held_out_images_nothing_is_drawn(tmp_path):
    pictures = str(folder_of_emoji(tmp_path / "pictures", broken=0))
    source = dict(data__source="folder", folder__path=pictures, folder__held_out_items=0.0)
    with pytest.raises(UserError, match="needs held-out images, and the data set has none"):
        Experiment(config(**source, held_out__retrieval=4), tmp_path / "run").run()


@pytest.mark.slow  # 60 s: a training, and the features of all images
def test_the_best_codec_makes_the_tokens_and_drawn_images_choose_the_best_denoiser(
    workdir, monkeypatch, capsys
):
    """The codec gets worse after its second evaluation, by the log; what is drawn is what the model
    draws.
    """
    drawn, extractor = [], validation.efficientnet_lite0()

    def embed(params, images):
        jax.debug.callback(lambda images: drawn.append(np.asarray(images)), images)
        return extractor.embed(params, images)

    watched = dataclasses.replace(extractor, embed=embed)
    monkeypatch.setattr(validation, "efficientnet_lite0", lambda: watched)
    c = config(
        vqvae_train__best="psnr",
        diffusion_train__best="style_accuracy",
        held_out__retrieval=4,
        preview__pictures=0,
        vqvae_train__keep=1,
        diffusion_train__keep=4,
    )
    Experiment(c, workdir).run()
    printed = capsys.readouterr().out
    logs = {
        stage: {
            row["step"]: {k.removeprefix("held_out/"): v for k, v in row.items()}
            for row in read_metrics(workdir / stage)
            if any(key.startswith("held_out/") for key in row)
        }
        for stage in STAGES
    }
    for stage, measure in (("vqvae", "psnr"), ("diffusion", "style_accuracy")):
        values = {step: row[measure] for step, row in logs[stage].items()}
        checkpoints = Checkpoints(Workdir(workdir).checkpoints(stage), read_only=True)
        best = checkpoints.best()
        assert list(values) == [1, 2, 3, 4] and best.value == max(values.values())
        assert best.step == max(values, key=values.get) and best.measure == measure
        assert f"{stage}: kept step {best.step}, the best by {measure}" in printed
    codec = Checkpoints(Workdir(workdir).checkpoints("vqvae"), read_only=True).best().step
    assert f"codec: step {codec}, the best by psnr" in printed
    for step in (1, 4):
        model = pipeline.load(workdir, checkpoint=step)
        assert [used.step for used in model.checkpoints] == [codec, step]
        source = Experiment(c, workdir).source
        chosen = validation.validation_records(source, 4)
        assert {source.records[i].split for i in chosen} == {CELLS}
        images = model([source.records[i].captions[0] for i in chosen], output="np")
        assert all(any((image == seen).all((1, 2, 3)).any() for seen in drawn) for image in images)
