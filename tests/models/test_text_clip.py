"""The CLIP text tower against OpenAI's definition in numpy float64, and against PyTorch's where it
is installed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.models.text_clip import ClipText

V, M, E, LAYERS, HEADS = 23, 9, 16, 2, 4
IDS = np.array([[21, 3, 5, 7, 22, 0, 0, 0, 0], [21, 4, 4, 9, 1, 8, 2, 6, 22]], np.int32)
MODEL = ClipText(vocabulary=V, length=M, width=E, layers=LAYERS, heads=HEADS)


def openai_weights(seed=0):
    """Random weights under the names and shapes of OpenAI's checkpoints."""
    rng = np.random.default_rng(seed)
    shapes = {
        "token_embedding.weight": (V, E),
        "positional_embedding": (M, E),
        "ln_final.weight": (E,),
        "ln_final.bias": (E,),
    }
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}."
        shapes |= {block + "attn.in_proj_weight": (3 * E, E), block + "attn.in_proj_bias": (3 * E,)}
        for name, out, into in [
            ("attn.out_proj", E, E),
            ("mlp.c_fc", 4 * E, E),
            ("mlp.c_proj", E, 4 * E),
        ]:
            shapes |= {f"{block}{name}.weight": (out, into), f"{block}{name}.bias": (out,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}{name}.weight": (E,), f"{block}{name}.bias": (E,)}
    return {name: rng.normal(size=shape) * 0.4 for name, shape in shapes.items()}


def params_from(w):
    """The table in ClipText's docstring."""

    def norm(name):
        return {"scale": w[name + ".weight"], "bias": w[name + ".bias"]}

    def dense(name):
        return {"kernel": w[name + ".weight"].T, "bias": w[name + ".bias"]}

    params = {
        "token_embedding": {"embedding": w["token_embedding.weight"]},
        "norm": norm("ln_final"),
        "position_embedding": w["positional_embedding"],
    }
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}."
        kernels, biases = (
            np.split(w[f"{block}attn.in_proj_{kind}"], 3) for kind in ("weight", "bias")
        )
        attention = {
            name: {"kernel": kernel.T, "bias": bias}
            for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
        }
        params[f"block_{i}"] = {
            "attention": attention | {"out": dense(block + "attn.out_proj")},
            "norm_1": norm(block + "ln_1"),
            "norm_2": norm(block + "ln_2"),
            "mlp_in": dense(block + "mlp.c_fc"),
            "mlp_out": dense(block + "mlp.c_proj"),
        }
    return {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)}


def reference(w, tokens):
    """One caption through OpenAI's model up to `ln_final`, then length 1 at each position."""

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return (
            x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[name + ".weight"]
            + w[name + ".bias"]
        )

    x = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}."
        qkv = (
            norm(x, block + "ln_1") @ w[block + "attn.in_proj_weight"].T
            + w[block + "attn.in_proj_bias"]
        )
        q, k, v = np.split(qkv, 3, axis=1)
        out = np.zeros_like(x)
        for f in np.split(np.arange(E), HEADS):
            for row in range(M):
                p = np.exp(k[: row + 1, f] @ q[row, f] / np.sqrt(E // HEADS))
                out[row, f] = p / p.sum() @ v[: row + 1, f]
        x = x + out @ w[block + "attn.out_proj.weight"].T + w[block + "attn.out_proj.bias"]
        y = norm(x, block + "ln_2") @ w[block + "mlp.c_fc.weight"].T + w[block + "mlp.c_fc.bias"]
        y = y / (1 + np.exp(-1.702 * y))
        x = x + y @ w[block + "mlp.c_proj.weight"].T + w[block + "mlp.c_proj.bias"]
    x = norm(x, "ln_final")
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def test_equals_the_definition():
    weights = openai_weights()
    states, mask = jax.jit(MODEL.apply)(params_from(weights), jnp.asarray(IDS))
    assert states.dtype == jnp.float32 and mask.shape == IDS.shape and mask.all()
    np.testing.assert_allclose(states, [reference(weights, tokens) for tokens in IDS], atol=1e-5)


def test_parameters_are_openais_in_number_and_shape():
    made = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.asarray(IDS))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params_from(openai_weights()))
    published = ClipText(vocabulary=49408, length=77, width=512, layers=12, heads=8)
    ids = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    full = jax.eval_shape(published.init, jax.random.key(0), ids)
    # the paper's "63M-parameter 12-layer 512-wide model", less its projection
    assert sum(leaf.size for leaf in jax.tree.leaves(full)) == 63_165_952


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tower = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=V,
            hidden_size=E,
            intermediate_size=4 * E,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=M,
            hidden_act="quick_gelu",
            bos_token_id=21,
            eos_token_id=22,
            pad_token_id=0,
        )
    ).eval()
    named = {name.removeprefix("text_model."): value for name, value in tower.named_parameters()}
    weights = openai_weights(1)
    same = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    values = {theirs: weights[ours] for theirs, ours in same.items()}
    for i in range(LAYERS):
        ours, theirs = f"transformer.resblocks.{i}.", f"encoder.layers.{i}."
        for kind in ("weight", "bias"):
            for part, value in zip(
                "qkv", np.split(weights[f"{ours}attn.in_proj_{kind}"], 3), strict=True
            ):
                values[f"{theirs}self_attn.{part}_proj.{kind}"] = value
            for a, b in [
                ("attn.out_proj", "self_attn.out_proj"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
            ]:
                values[f"{theirs}{b}.{kind}"] = weights[f"{ours}{a}.{kind}"]
    assert named.keys() == values.keys()
    with torch.no_grad():
        for name, value in values.items():
            named[name].copy_(torch.tensor(value))
        hidden = tower(input_ids=torch.tensor(IDS, dtype=torch.long)).last_hidden_state
        expected = (hidden / hidden.norm(dim=-1, keepdim=True)).numpy()
    states, _ = jax.jit(MODEL.apply)(params_from(weights), jnp.asarray(IDS))
    np.testing.assert_allclose(states, expected, atol=1e-5)
