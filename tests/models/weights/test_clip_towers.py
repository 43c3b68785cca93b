"""CLIP's towers against their definition in numpy, and against transformers and OpenAI's code where
they are installed.
"""

import json
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.torchvision_stub import import_with
from vqd_jax.core.errors import UserError
from vqd_jax.eval.features import clip
from vqd_jax.models.clip import ClipCaption, ClipImage
from vqd_jax.models.text_clip import ClipText
from vqd_jax.models.weights.clip_towers import RULES, load_clip, networks
from vqd_jax.models.weights.rules import invert

IMAGE = ClipImage(size=24, patch=8, width=128, layers=2, heads=2, embedding=20)
CAPTION = ClipCaption(ClipText(vocabulary=23, length=9, width=64, layers=2, heads=1), embedding=20)
IDS = np.array(
    [[21, 3, 5, 7, 22, 0, 0, 0, 0], [21, 4, 4, 9, 1, 8, 2, 6, 22], [21, 22, 0, 0, 0, 0, 0, 0, 0]],
    np.int32,
)


def shapes(image, caption):
    pixels, ids = (
        jnp.zeros((1, image.size, image.size, 3)),
        jnp.zeros((1, caption.tower.length), jnp.int32),
    )
    return {
        name: jax.eval_shape(network.init, jax.random.key(0), x)["params"]
        for name, network, x in (("image", image, pixels), ("caption", caption, ids))
    }


def params(seed=0):
    random = np.random.default_rng(seed)
    values = lambda leaf: random.normal(
        0, 0.4 if len(leaf.shape) < 2 else 1.5 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape
    )
    return jax.tree.map(lambda leaf: values(leaf).astype(np.float32), shapes(IMAGE, CAPTION))


@pytest.mark.parametrize(
    ("image", "text", "published"),
    [
        (
            {"patch": 32, "width": 768, "layers": 12, "heads": 12, "embedding": 512},
            {"width": 512, "heads": 8},
            151_277_313,
        ),
        pytest.param(
            {"patch": 14, "width": 1024, "layers": 24, "heads": 16, "embedding": 768},
            {"width": 768, "heads": 12},
            427_616_513,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_parameters_are_as_many_as_published(image, text, published):
    """ViT-B/32 and ViT-L/14, with the temperature, which is not used here."""
    image = ClipImage(size=224, **image)
    tower = ClipText(vocabulary=49408, length=77, layers=12, **text)
    tree = shapes(image, ClipCaption(tower, embedding=image.embedding))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) + 1 == published


def test_an_image_is_embedded_by_the_definition():
    """In float64: patches as products, no mask, the class token's last state."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params()["image"])
    picture = np.random.default_rng(1).normal(size=(24, 24, 3))

    def norm(x, at):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * at["scale"] + at["bias"]

    def dense(x, at):
        return x @ at["kernel"] + at["bias"]

    patches = [
        np.tensordot(picture[r : r + 8, c : c + 8], p["patches"]["kernel"], 3)
        for r in (0, 8, 16)
        for c in (0, 8, 16)
    ]
    x = norm(np.stack([p["class_embedding"], *patches]) + p["position_embedding"], p["norm_in"])
    for block in (p["block_0"], p["block_1"]):
        y, out = norm(x, block["norm_1"]), np.zeros_like(x)
        q, k, v = (dense(y, block["attention"][name]) for name in ("query", "key", "value"))
        for head in (slice(0, 64), slice(64, 128)):
            weights = np.exp(q[:, head] @ k[:, head].T / 8)
            out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, head]
        x = x + dense(out, block["attention"]["out"])
        y = dense(norm(x, block["norm_2"]), block["mlp_in"])
        x = x + dense(y / (1 + np.exp(-1.702 * y)), block["mlp_out"])
    want = norm(x[0], p["norm"]) @ p["projection"]["kernel"]
    got = jax.jit(IMAGE.apply)(
        {"params": params()["image"]}, jnp.asarray(picture[None], jnp.float32)
    )
    np.testing.assert_allclose(got[0], want, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow  # 4 s
def test_a_caption_is_its_end_token_whatever_pads_it():
    p, ended = params()["caption"], np.where(np.cumsum(IDS == 22, axis=1) > 0, 22, IDS)
    got, again = (jax.jit(CAPTION.apply)({"params": p}, jnp.asarray(ids)) for ids in (IDS, ended))
    states, _ = jax.jit(CAPTION.tower.apply)({"params": p["tower"]}, jnp.asarray(IDS))
    want = states[np.arange(3), [4, 8, 1]] @ p["projection"]["kernel"]
    np.testing.assert_allclose(got, want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(again, got, atol=1e-6)


def hugging_face(tree):
    """The arrays by the names that Hugging Face has."""
    return invert(tree, RULES) | {"logit_scale": np.ones(1, np.float32)}


@pytest.fixture
def folder(tmp_path):
    save_file(hugging_face(params()), tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder_gives_its_sizes_and_arrays(folder):
    image, caption, found = load_clip(folder)
    assert (image, caption) == (IMAGE, CAPTION)
    jax.tree.map(np.testing.assert_array_equal, found, params())


@pytest.mark.slow  # 4 s
def test_extractors_take_pictures_of_any_size_and_ids(folder):
    extract = clip(folder, batch=2)
    pictures = np.random.default_rng(2).integers(0, 256, (3, 24, 30, 3), dtype=np.uint8)
    pixels = (pictures[:, :, 3:27] / 255 - [0.48145466, 0.4578275, 0.40821073]) / [
        0.26862954,
        0.26130258,
        0.27577711,
    ]
    apply = jax.jit(IMAGE.apply)
    want = apply({"params": params()["image"]}, jnp.asarray(pixels, jnp.float32))
    np.testing.assert_allclose(extract.images(pictures), want, atol=1e-5 * np.abs(want).max())
    np.testing.assert_allclose(
        extract.captions(IDS),
        jax.jit(CAPTION.apply)({"params": params()["caption"]}, jnp.asarray(IDS)),
        atol=1e-6,
    )
    with pytest.raises(UserError, match="takes images of 24 pixels a side, got 24x32"):
        jax.eval_shape(IMAGE.init, jax.random.key(0), jnp.zeros((1, 24, 32, 3)))


def test_other_models_are_refused(folder):
    for settings, message in [
        (
            {"vision_config": {"hidden_act": "gelu"}},
            "vision_config.hidden_act is 'gelu'; only OpenAI's quick_gelu",
        ),
        (
            {"text_config": {"hidden_size": 64, "num_attention_heads": 4}},
            "text_config.num_attention_heads is 4; only 1, of 64 features each,",
        ),
        ([], "holds a list, not an object"),
    ]:
        (folder / "config.json").write_text(json.dumps(settings))
        with pytest.raises(UserError, match=message):
            load_clip(folder)
    arrays = hugging_face(params())
    with pytest.raises(UserError, match="not the weights of a CLIP with a vision transformer"):
        networks(
            {key: value for key, value in arrays.items() if not key.startswith("vision_model.")}
        )
    (folder / "config.json").unlink()
    save_file(
        {key: value for key, value in arrays.items() if key != "vision_model.pre_layrnorm.bias"},
        folder / "model.safetensors",
    )
    with pytest.raises(UserError, match="nothing for 'image/norm_in/bias'"):
        load_clip(folder)


def test_equals_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": 23,
                "hidden_size": 64,
                "intermediate_size": 256,
                "num_hidden_layers": 2,
                "num_attention_heads": 1,
                "max_position_embeddings": 9,
                "bos_token_id": 21,
                "eos_token_id": 22,
                "pad_token_id": 0,
            },
            vision_config={
                "hidden_size": 128,
                "intermediate_size": 512,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 24,
                "patch_size": 8,
            },
            projection_dim=20,
        )
    ).eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    pictures = np.random.default_rng(3).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    pixels = processor(list(pictures), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(IDS, dtype=torch.long), pixel_values=pixels)
        embedded = model.get_image_features(pixel_values=pixels).pooler_output.numpy()
    extract = clip(tmp_path, batch=3)
    images, captions = extract.images(pictures), extract.captions(IDS)
    np.testing.assert_allclose(images, embedded, atol=1e-5 * np.abs(embedded).max())
    np.testing.assert_allclose(
        images / np.linalg.norm(images, axis=1, keepdims=True), theirs.image_embeds, atol=1e-5
    )
    np.testing.assert_allclose(captions, theirs.text_embeds, atol=1e-5)
    assert np.ptp(captions @ embedded.T) > 0.1


def test_equals_openais_code(tmp_path):
    """As torch-fidelity carries it, whose networks take numbers of half precision from the file."""
    torch = pytest.importorskip("torch")
    theirs = import_with(MagicMock(), "torch_fidelity.feature_extractor_clip")
    model = torch.nn.Module()
    model.visual = theirs.VisionTransformer(24, 8, 128, 2, 2, 20)
    model.transformer = theirs.Transformer(64, 2, 1, torch.full((9, 9), -torch.inf).triu(1))
    model.token_embedding, model.ln_final = torch.nn.Embedding(23, 64), theirs.LayerNorm(64)
    for name, shape in (
        ("positional_embedding", (9, 64)),
        ("text_projection", (64, 20)),
        ("logit_scale", ()),
    ):
        setattr(model, name, torch.nn.Parameter(torch.zeros(shape)))
    randomise(model)
    state = {key: value.half() for key, value in model.state_dict().items()}
    torch.save(dict(state), tmp_path / "ViT-L-14.pt")
    pixels = np.random.default_rng(4).normal(size=(2, 24, 24, 3)).astype(np.float32)
    with torch.no_grad():
        model.load_state_dict(state)
        image = (
            theirs.build_model(dict(state), torch.float32)
            .visual(torch.tensor(pixels).permute(0, 3, 1, 2))
            .numpy()
        )
        x = model.token_embedding(torch.tensor(IDS)) + model.positional_embedding
        x = model.ln_final(model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
        caption = x[torch.arange(3), torch.tensor(IDS).argmax(-1)] @ model.text_projection
        caption = (caption / caption.norm(dim=-1, keepdim=True)).numpy()
    ours, captions, found = load_clip(tmp_path)
    np.testing.assert_allclose(
        jax.jit(ours.apply)({"params": found["image"]}, pixels),
        image,
        atol=1e-5 * np.abs(image).max(),
    )
    np.testing.assert_allclose(
        jax.jit(captions.apply)({"params": found["caption"]}, jnp.asarray(IDS)), caption, atol=1e-5
    )


def randomise(model):
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=generator)
                * (0.4 if p.ndim < 2 else 1.5 / p[0].numel() ** 0.5)
            )
