"""Mutated weights, settings and checkpoints against every reader: a UserError of one line or a
result, whatever the bytes; nothing run, no memory for sizes that are only claimed.

A few examples in the ordinary tests, the same every time. A long run with new ones, for hours if
need be: VQD_FUZZ=100000 python -m pytest tests/models/weights/test_fuzz_weights.py
"""

import io
import json
import pickle
import tempfile
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from helpers import torch_pickles
from helpers.fuzzing import (
    EDITS,
    fuzz,
    little_memory,
    mutated,
    only_user_errors,
    with_a_wrong_value,
)
from vqd_jax.inference import loading
from vqd_jax.models.weights import clip, denoiser, exported, released, vqgan
from vqd_jax.models.weights.files import flatten, read_tree
from vqd_jax.models.weights.torch_files import read_numpy_pickle
from vqd_jax.runtime.checkpoint import Checkpoints


def weights():
    """Files of weights by name, of every format that is read, without torch."""
    x, rng = np.arange(24, dtype=np.float32), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:

        def state(tensor):
            shared = torch_pickles.Storage("FloatStorage", x)
            return {
                "model": {
                    "a.weight": tensor(shared, 0, (4, 6), (6, 1)),
                    "a.bias": tensor(shared, 18, (6,), (1,)),
                    "n": tensor(torch_pickles.Storage("LongStorage", np.array([7])), 0, (), ()),
                },
                "epoch": 3,
                "betas": [0.9, (1,)],
            }

        for name, legacy in (("new.pth", False), ("old.pth", True)):
            torch_pickles.save(f"{place}/{name}", legacy, state)
        save_file(
            {"a": x.reshape(4, 6), "b": x[:3].astype(np.float16)},
            f"{place}/plain.safetensors",
            {"format": "pt"},
        )
        stages = {
            "vqvae": {
                "step": 5,
                "config": {"seed": 1},
                "weights": {"codes": x.reshape(4, 6), "vqvae": {"k": {"bias": x[:3]}}},
            }
        }
        exported.write(Path(place) / "own.safetensors", stages, {"random": x})
        for protocol in (0, 2, 5):
            tree = {
                "w": rng.normal(size=(3, 4)).astype(np.float32),
                "c": np.asfortranarray(rng.normal(size=(2, 2))),
                "n": np.float64(2),
            }
            Path(f"{place}/numpy{protocol}.pkl").write_bytes(pickle.dumps(tree, protocol=protocol))
        return {path.name: path.read_bytes() for path in sorted(Path(place).iterdir())}


WEIGHTS = weights()


@fuzz(150)
@given(st.sampled_from(sorted(WEIGHTS)), EDITS, st.booleans())
def test_weights(name, edits, inside):
    content = WEIGHTS[name]
    if inside and name == "new.pth":  # with right checksums
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(file, "w") as changed:
            for member in whole.namelist():
                part = whole.read(member)
                changed.writestr(
                    member, mutated(part, edits) if member.endswith("data.pkl") else part
                )
        content = file.getvalue()
    else:
        content = mutated(content, edits)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / name
        path.write_bytes(content)
        with only_user_errors(place), little_memory():
            if name.endswith(".pkl"):
                read_numpy_pickle(path)
            elif name.startswith("own"):
                exported.read(path) if exported.is_exported(path) else read_tree(path)
            else:
                assert sum(a.nbytes for a in flatten(read_tree(path)).values()) <= 100 * len(
                    content
                )


YAML = """
model:
  params:
    diffusion_config:
      params:
        adaptive_auxiliary_loss: true
        auxiliary_loss_weight: 5.0e-4
        diffusion_step: 10
        condition_emb_config: {params: {num_embed: 4}}
        content_emb_config: {params: {spatial_size: !!python/tuple [8, 8]}}
        transformer_config: {params: {n_layer: 1, n_embd: 4, n_head: 3, content_spatial_size: [8, 8]}}
"""
SHAPES = {
    "content_emb.emb.weight": (21, 4),
    "content_emb.height_emb.weight": (8, 4),
    "content_emb.width_emb.weight": (8, 4),
    "blocks.0.ln1.emb.weight": (10, 4),
    "blocks.0.ln2.emb.weight": (4, 4),
    "blocks.0.mlp.0.weight": (16, 4),
}
DIFFUSERS = {
    "latent_image_embedding.emb.weight": (21, 4),
    "latent_image_embedding.height_emb.weight": (8, 4),
    "latent_image_embedding.width_emb.weight": (8, 4),
    "transformer_blocks.0.norm1.emb.weight": (10, 4),
    "transformer_blocks.0.ff.net.0.proj.weight": (16, 4),
    "transformer_blocks.0.attn2.to_q.weight": (4, 4),
}

CODEC = {
    "encoder.conv_in.weight": (2, 3, 3, 3),
    "encoder.down.0.block.0.conv1.weight": (2, 2, 3, 3),
    "encoder.conv_out.weight": (5, 2, 3, 3),
    "encoder.down.1.block.0.conv1.weight": (4, 2, 3, 3),
    "encoder.down.1.attn.0.q.weight": (4, 4, 1, 1),
    "quantize.embedding": (7, 5),
}
CLIP = {
    "token_embedding.weight": (9, 64),
    "positional_embedding": (5, 64),
    "transformer.resblocks.0.attn.in_proj_weight": (192, 64),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An official checkpoint with its YAML and a diffusers folder, as far as `released.read` looks
    at them; the files to be mutated.
    """
    place = tmp_path_factory.mktemp("models")

    def state(tensor):
        whole = lambda *shape: tensor(
            torch_pickles.Storage("FloatStorage", np.ones(shape, np.float32)),
            0,
            shape,
            tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape))),
        )
        exported = {
            f"transformer.transformer.{name}": whole(*shape) for name, shape in SHAPES.items()
        }
        exported |= {f"transformer.log_cumprod_{x}t": whole(11) for x in "ab"}
        return {
            "model": exported | {"content_codec.enc.encoder.conv_in.weight": whole(2, 3, 3, 3)},
            "ema": {name.removeprefix("transformer."): array for name, array in exported.items()},
        }

    for name, legacy in (("new.pth", False), ("old.pth", True)):
        torch_pickles.save(place / name, legacy, state)
    (place / "config.yaml").write_text(YAML)
    parts = {
        "transformer": (DIFFUSERS, {"num_attention_heads": 2, "sample_size": 8}),
        "vqvae": ({"decoder.up_blocks.0.x": (1,)}, {}),
        "text_encoder": ({"x": (1,)}, {}),
        "learned_classifier_free_sampling_embeddings": (
            {"embeddings": (3, 4)},
            {"learnable": True},
        ),
        "scheduler": (
            {},
            {"num_train_timesteps": 10, "alpha_cum_start": 0.9, "gamma_cum_end": 0.9},
        ),
    }
    for part, (shapes, values) in parts.items():
        (place / "folder" / part).mkdir(parents=True)
        (
            place / "folder" / part / ("config.json" if shapes else "scheduler_config.json")
        ).write_text(json.dumps(values))
        if shapes:
            arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
            save_file(arrays, place / "folder" / part / "diffusion_pytorch_model.safetensors")
    (place / "folder/model_index.json").write_text("{}")
    texts = [
        p
        for p in sorted(place.rglob("*"))
        if p.suffix in (".yaml", ".json") and p.name != "model_index.json"
    ]
    return place, [
        p for p in sorted(place.rglob("*")) if p.suffix in (".pth", ".safetensors")
    ] + texts * 2


@fuzz(120)
@given(file=st.integers(0, 2**16), edits=EDITS)
def test_published_models(models, file, edits):
    place, files = models
    path = files[file % len(files)]
    content = path.read_bytes()
    path.write_bytes(mutated(content, edits))
    try:
        with only_user_errors(place), little_memory():
            if "folder" in path.relative_to(place).parts:
                released.read(place / "folder")
            else:
                released.read(
                    path if path.suffix == ".pth" else place / "new.pth", place / "config.yaml"
                )
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "sizes,source", [(vqgan.sizes, CODEC), (denoiser.sizes, SHAPES), (clip.sizes, CLIP)]
)
def test_weights_of_another_shape(sizes, source):
    """Each array gone, or in turn without axes, empty, flat and with an axis more."""
    source = {name: np.ones(shape, np.float32) for name, shape in source.items()}
    assert sizes(source)
    for name in source:
        for other in (
            None,
            np.float32(1)[...],
            np.zeros((0, 0)),
            np.ones(4),
            np.ones((1, 2, 3, 4, 5)),
        ):
            with only_user_errors():
                sizes(
                    {
                        key: array if key != name else other
                        for key, array in source.items()
                        if key != name or other is not None
                    }
                )


@pytest.mark.slow  # 6 s
def test_values_of_another_kind(models):
    """Well formed settings with one wrong value."""
    place, _ = models
    cases = [
        (p, lambda: released.read(place / "folder"), json.dumps, json.loads)
        for p in sorted((place / "folder").rglob("*.json"))
    ]
    cases += [
        (
            place / "config.yaml",
            lambda: released.read(place / "new.pth", place / "config.yaml"),
            yaml.dump,
            yaml.unsafe_load,
        )
    ]
    for path, read, dump, load in cases:
        whole = path.read_text()
        for changed in with_a_wrong_value(load(whole)):
            path.write_text(dump(changed))
            with only_user_errors():
                read()
        path.write_text(whole)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A step of a checkpoint, its items, and the plan of a workdir."""
    place = tmp_path_factory.mktemp("workdir")
    rng = np.random.default_rng(0)
    items = {
        "weights": {
            "layer": {"kernel": rng.normal(size=(8, 6)).astype(np.float32), "bias": np.arange(6)}
        },
        "config": {"lr": 0.1, "n": [1, 2]},
        "note": "hello",
    }
    with Checkpoints(place / "checkpoints") as checkpoints:
        checkpoints.save(3, items)
    (place / "diffusion").mkdir()
    np.savez(
        place / "diffusion/plan.npz", random=rng.normal(size=9), halton=rng.normal(size=(9, 9))
    )
    return place, items


@fuzz(60)
@given(file=st.integers(0, 2**16), edits=EDITS)
def test_checkpoints(checkpoint, file, edits):
    """What comes back is what was saved, or an error."""
    place, items = checkpoint
    files = sorted(p for p in (place / "checkpoints").rglob("*") if p.is_file())
    files += [p for p in files if p.name == "sha256.json"] * 5
    path = files[file % len(files)]
    content = path.read_bytes()
    path.write_bytes(mutated(content, edits))
    try:
        for name, want in items.items():
            with only_user_errors():
                got = Checkpoints(place / "checkpoints", read_only=True).restore(name)
                assert jax.tree.structure(got) == jax.tree.structure(want)
                jax.tree.map(np.testing.assert_array_equal, got, want)
    finally:
        path.write_bytes(content)


@fuzz(60)
@given(edits=EDITS)
def test_plans(checkpoint, edits):
    place, _ = checkpoint
    path = place / "diffusion/plan.npz"
    content = path.read_bytes()
    path.write_bytes(mutated(content, edits))
    try:
        with only_user_errors(), little_memory():
            loading.read_plan(place)
    finally:
        path.write_bytes(content)
