"""The codec against a NumPy forward pass, and its size against the published layout, counted by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqd_jax.core.errors import UserError
from vqd_jax.models.codebook import straight_through
from vqd_jax.models.vqvae import VQVAE, fold, unfold

TINY = dict(
    channels=12,
    multipliers=(1, 2),
    residual_blocks=1,
    attention_resolutions=(4,),
    middle_attention=True,
    latent_width=5,
    code_width=3,
    resampling="conv",
    patch_size=1,
)


def images(b=2, side=8, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (b, side, side, 3)), jnp.float32)


def random_params(model, x, seed=1):
    """Parameters in which no bias is 0 and no gain 1."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(seed)
    draw = lambda s: jnp.asarray(
        rng.normal(size=s.shape)
        * (0.3 if len(s.shape) == 1 else 1 / math.sqrt(np.prod(s.shape[:-1]))),
        jnp.float32,
    )
    return jax.tree.map(draw, shapes)


class Plain:
    """Encoder and decoder by the papers' figures, float64."""

    def __init__(
        self,
        params,
        *,
        channels,
        multipliers,
        residual_blocks,
        attention_resolutions,
        middle_attention,
        resampling="conv",
        patch_size=1,
        **_,
    ):
        self.params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        self.levels, self.blocks, self.fine = len(multipliers), residual_blocks, patch_size
        self.attends, self.middle_attends, self.resampling = (
            attention_resolutions,
            middle_attention,
            resampling,
        )

    def encode(self, x):
        p = self.params["encoder"]
        x = conv(squares_to_channels(x, self.fine), p["conv_in"])
        for i in range(self.levels):
            x = self._level(x, p, f"down{i}", self.blocks)
            if i < self.levels - 1:
                if self.resampling == "conv":  # pads a row below and a column on the right
                    x = conv(
                        np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))),
                        p[f"down{i}_resample"],
                        stride=2,
                        pad=0,
                    )
                else:
                    x = dense(squares_to_channels(x, 2), p[f"down{i}_resample"])
        x = conv(silu(group_norm(self._middle(x, p), p["norm_out"])), p["conv_out"])
        return dense(x, self.params["to_code"])

    def decode(self, z):
        p = self.params["decoder"]
        x = self._middle(conv(dense(z, self.params["from_code"]), p["conv_in"]), p)
        for i in reversed(range(self.levels)):
            x = self._level(x, p, f"up{i}", self.blocks + 1)
            if i > 0 and self.resampling == "conv":
                x = conv(np.kron(x, np.ones((1, 2, 2, 1))), p[f"up{i}_resample"])
            elif i > 0:
                x = channels_to_squares(dense(x, p[f"up{i}_resample"]), 2)
        return channels_to_squares(
            conv(silu(group_norm(x, p["norm_out"])), self.params["last"]), self.fine
        )

    def _level(self, x, p, name, blocks):
        for j in range(blocks):
            x = residual(x, p[f"{name}_block{j}"])
            if x.shape[1] in self.attends:
                x = attention(x, p[f"{name}_attention{j}"])
        return x

    def _middle(self, x, p):
        x = residual(x, p["middle_block0"])
        x = attention(x, p["middle_attention"]) if self.middle_attends else x
        return residual(x, p["middle_block1"])


def conv(x, p, stride=1, pad=1):
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    h, w = (x.shape[1] - 3) // stride + 1, (x.shape[2] - 3) // stride + 1
    out = np.zeros((x.shape[0], h, w, p["kernel"].shape[-1])) + p["bias"]
    for i in range(3):
        for j in range(3):
            out += (
                x[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
                @ p["kernel"][i, j]
            )
    return out


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def group_norm(x, p):
    b, h, w, c = x.shape
    groups = np.split(x, math.gcd(32, c), axis=-1)
    norm = [
        (g - g.mean((1, 2, 3), keepdims=True)) / np.sqrt(g.var((1, 2, 3), keepdims=True) + 1e-6)
        for g in groups
    ]
    return np.concatenate(norm, -1) * p["scale"] + p["bias"]


def residual(x, p):
    h = conv(silu(group_norm(x, p["norm1"])), p["conv1"])
    h = conv(silu(group_norm(h, p["norm2"])), p["conv2"])
    return h + (dense(x, p["shortcut"]) if "shortcut" in p else x)


def attention(x, p):
    b, h, w, c = x.shape
    y = group_norm(x, p["norm"]).reshape(b, h * w, c)
    q, k, v = (dense(y, p[name]) for name in "qkv")
    scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(c))
    return x + dense(scores / scores.sum(-1, keepdims=True) @ v, p["out"]).reshape(b, h, w, c)


def squares_to_channels(x, by):
    b, h, w, c = x.shape
    rows = [x[:, i::by, j::by] for i in range(by) for j in range(by)]
    return np.concatenate(rows, -1)


def channels_to_squares(x, by):
    b, h, w, c = x.shape
    out = np.zeros((b, h * by, w * by, c // by**2))
    for n, part in enumerate(np.split(x, by**2, -1)):
        out[:, n // by :: by, n % by :: by] = part
    return out


@pytest.mark.parametrize("by", [1, 2, 3])
def test_fold_and_unfold_are_inverse_and_keep_squares_together(by):
    x = np.random.default_rng(0).normal(size=(2, 6, 12, 5)).astype(np.float32)
    folded = fold(jnp.asarray(x), by)
    np.testing.assert_array_equal(folded, squares_to_channels(x, by))
    np.testing.assert_array_equal(unfold(folded, by), x)


LAYOUTS = [
    dict(resampling="conv", patch_size=1),
    dict(resampling="fold", patch_size=2),
    dict(
        resampling="conv",
        patch_size=1,
        multipliers=(1, 1, 2),
        attention_resolutions=(),
        middle_attention=False,
    ),
]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(LAYOUTS[0], id="vqgan"),
        pytest.param(LAYOUTS[1], id="fold", marks=pytest.mark.slow),
        pytest.param(LAYOUTS[2], id="no attention", marks=pytest.mark.slow),
    ],
)
def test_encode_and_decode_are_the_papers_network(layout):
    fields = TINY | layout
    model, side = VQVAE(**fields), 16 if fields["patch_size"] == 2 else 8
    x = images(side=side)
    params = random_params(model, x)
    plain = Plain(params, **fields)

    @jax.jit
    def run(params, x):
        apply = lambda x, method: model.apply({"params": params}, x, method=method)
        z = apply(x, "encode")
        return z, apply(z, "decode"), apply(apply(z, "features"), "paint")

    z, out, painted = run(params, x)
    assert (
        z.shape == (2, side // model.downsampling, side // model.downsampling, 3)
        and z.dtype == jnp.float32
    )
    np.testing.assert_allclose(z, plain.encode(np.asarray(x, np.float64)), rtol=1e-4, atol=1e-4)
    want = plain.decode(np.asarray(z, np.float64))
    assert out.shape == x.shape and out.dtype == jnp.float32
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    np.testing.assert_allclose(painted, out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "patch,multipliers,factor",
    [(1, (1,), 1), (2, (1, 2), 4), (1, (1, 1, 2, 2, 4), 16), (4, (1, 2), 8)],
)
def test_down_factor(patch, multipliers, factor):
    model = VQVAE(**TINY | dict(patch_size=patch, multipliers=multipliers))
    assert model.downsampling == factor
    x = jax.ShapeDtypeStruct((1, 2 * factor, 2 * factor, 3), jnp.float32)
    out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    z = jax.eval_shape(lambda v, x: model.apply(v, x, method="encode"), variables, x)
    assert z.shape == (1, 2, 2, 3) and out.shape == x.shape


def test_the_f16_vqgan_has_the_parameters_of_the_paper():
    model = VQVAE(
        channels=128,
        multipliers=(1, 1, 2, 2, 4),
        residual_blocks=2,
        attention_resolutions=(16,),
        middle_attention=True,
        resampling="conv",
        patch_size=1,
        latent_width=256,
        code_width=256,
    )
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))

    conv, one = lambda a, b: 9 * a * b + b, lambda a, b: a * b + b
    block = lambda a, b: 2 * a + conv(a, b) + 2 * b + conv(b, b) + (one(a, b) if a != b else 0)
    attend = lambda c: 2 * c + 4 * one(c, c)
    middle = 2 * block(512, 512) + attend(512)
    encoder = (
        conv(3, 128)
        + 2 * (2 * block(128, 128) + conv(128, 128))  # 256 and 128 px
        + block(128, 256)
        + block(256, 256)
        + conv(256, 256)  # 64 px
        + 2 * block(256, 256)
        + conv(256, 256)  # 32 px
        + block(256, 512)
        + block(512, 512)
        + 2 * attend(512)  # 16 px
        + middle
        + 2 * 512
        + conv(512, 256)
    )
    decoder = (
        conv(256, 512)
        + middle
        + 3 * (block(512, 512) + attend(512))
        + conv(512, 512)
        + block(512, 256)
        + 2 * block(256, 256)
        + conv(256, 256)
        + 3 * block(256, 256)
        + conv(256, 256)
        + block(256, 128)
        + 2 * block(128, 128)
        + conv(128, 128)
        + 3 * block(128, 128)
        + 2 * 128
    )
    assert count(params["encoder"]) == encoder
    assert count(params["decoder"]) == decoder
    assert count(params["last"]) == conv(128, 3)
    assert count(params["to_code"]) == count(params["from_code"]) == one(256, 256)
    assert count(params) == encoder + decoder + conv(128, 3) + 2 * one(256, 256) == 71_879_555


@pytest.mark.slow  # 4 s
def test_bfloat16_computes_close_to_float32_and_keeps_parameters():
    x, params = images(), None
    outs = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = VQVAE(**TINY | {"multipliers": (1,), "attention_resolutions": ()}, dtype=dtype)
        fresh = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
        assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(fresh))
        params = params or random_params(model, x)
        outs.append(np.asarray(jax.jit(model.apply)({"params": params}, x)))
        assert outs[-1].dtype == np.float32
    error = np.abs(outs[0] - outs[1]).mean() / np.abs(outs[0]).mean()
    assert 1e-5 < error < 0.1


def test_gradients_pass_the_codebook_to_the_encoder():
    """The encoder's gradient is that of the codes, passed back through the encoder."""
    model, x = VQVAE(**TINY | {"attention_resolutions": (), "middle_attention": False}), images()
    params, rng = random_params(model, x), np.random.default_rng(0)
    codes = jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    encode = lambda p: model.apply({"params": p}, x, method="encode")

    def loss(p, shift):
        z = straight_through(encode(p), codes) + shift
        return (model.apply({"params": p}, z, method="decode") * weight).sum()

    slope, at_codes = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, jnp.zeros_like(codes))
    (want,) = jax.jit(lambda p, g: jax.vjp(encode, p)[1](g))(params, at_codes)
    for part in ("encoder", "to_code"):
        for a, b in zip(jax.tree.leaves(slope[part]), jax.tree.leaves(want[part]), strict=True):
            assert np.abs(b).max() > 0
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def test_an_unknown_resampling_is_one_sentence():
    with pytest.raises(UserError, match="vqvae.resampling must be conv or fold, got 'pool'"):
        VQVAE(**TINY | {"resampling": "pool"}).init(jax.random.key(0), images())
