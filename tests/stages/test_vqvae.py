"""The codec's losses: each term and switch by hand, whose gradient reaches whom, and the codes as
weights.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.stages import close
from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.models.codebook import Codebook
from vqd_jax.models.discriminator import PatchGAN
from vqd_jax.models.vqvae import VQVAE
from vqd_jax.runtime.rows import Rows
from vqd_jax.stages import vqvae as module
from vqd_jax.stages.vqvae import VQVAELoss, VQVAEStage, to_float, to_uint8

OFF = dict(
    l1=0.0,
    l2=0.0,
    commitment=0.0,
    lpips=0.0,
    lpips_examples=0,
    adversarial=0.0,
    adversarial_start=0,
    adversarial_adaptive=False,
)
MODEL = VQVAE(
    channels=4,
    multipliers=(1,),
    residual_blocks=0,
    attention_resolutions=(),
    middle_attention=False,
    resampling="fold",
    patch_size=2,
    latent_width=4,
    code_width=3,
)
CRITIC = PatchGAN(width=4, layers=1)
BATCH = {
    "image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
}
FROZEN = {"lpips": {"w": jnp.float32(3)}}


def make(update="ema", **weights):
    return VQVAEStage(
        model=MODEL,
        codebook=Codebook(codes=6, width=3, updates=update, restart_every=0),
        discriminator=CRITIC,
        weights=VQVAELoss(**OFF | weights),
        pace=Pace(4),
    )


class Squared:
    """Stands in for the perceptual network: w times the mean square, one number an image."""

    def __init__(self, dtype):
        assert dtype == MODEL.dtype

    def apply(self, variables, x, y):
        return variables["params"]["w"] * jnp.square(x - y).mean((1, 2, 3))


@pytest.fixture(autouse=True)
def small_lpips(monkeypatch):
    monkeypatch.setattr(module, "LPIPS", Squared)


@pytest.fixture(scope="module")
def start():
    """Parameters of a stage with everything on, by codebook update."""
    return {
        update: jax.jit(make(update, adversarial=1.0).init)(jax.random.key(0), BATCH)
        for update in ("ema", "gradient")
    }


def run(stage, params, extra, step=0):
    def loss(params, step):
        value, (aux, metrics) = stage.loss(
            params, extra, FROZEN, BATCH, jax.random.key(1), step, Rows.of_device(4)
        )
        learned, whole = stage.update_extra(extra, aux, jax.random.key(1), step, None)
        return value, (learned, metrics | whole)

    (value, (learned, metrics)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        params, step
    )
    return value, learned, metrics, gradient


@jax.jit
def forward(params, vectors):
    """Images, code vectors before and after quantisation by brute force, and the output, straight
    through.
    """
    x = jnp.asarray(BATCH["image"], jnp.float32) / 127.5 - 1
    z = MODEL.apply({"params": params["vqvae"]}, x, method="encode")
    flat = z.reshape(-1, 3)
    index = jnp.square(flat[:, None] - vectors[None]).sum(-1).argmin(1)
    q = vectors[index].reshape(z.shape)
    out = MODEL.apply(
        {"params": params["vqvae"]}, z + jax.lax.stop_gradient(q - z), method="decode"
    )
    return x, z, q, out, index


def critic(params, x):
    return CRITIC.apply({"params": params}, x)


def relu(x):
    return np.maximum(np.asarray(x, np.float64), 0)


@pytest.mark.parametrize(
    "weights",
    [
        dict(lpips=0.5, lpips_examples=2),
        dict(l1=1.0, l2=1.0, commitment=0.25, lpips=0.1, adversarial=0.2, adversarial_start=8),
        *(
            pytest.param(weights, marks=pytest.mark.slow)  # one term at a time
            for weights in (
                dict(l1=2.0),
                dict(l2=0.7),
                dict(l1=1.0, commitment=0.25),
                dict(l2=1.0, lpips=0.5),
                dict(l1=1.0, adversarial=0.3),
                dict(l1=1.0, adversarial=0.3, adversarial_start=400),
            )
        ),
    ],
    ids=str,
)
def test_every_term_and_switch_by_hand(weights, start):
    params, extra = start["ema"]
    if not weights.get("adversarial"):
        params = {"vqvae": params["vqvae"]}
    step = 3  # 12 examples seen
    loss = lambda p: make(**weights).loss(
        p, extra, FROZEN, BATCH, jax.random.key(1), jnp.int32(step), Rows.of_device(4)
    )
    value, (_, metrics) = jax.jit(loss)(params)
    x, z, q, out, _ = (np.asarray(a, np.float64) for a in forward(params, extra.vectors))
    w = OFF | weights
    rows = w["lpips_examples"] or 4
    want = (
        w["l1"] * np.abs(x - out).mean()
        + w["l2"] * np.square(x - out).mean()
        + w["commitment"] * np.square(z - q).mean()
    )
    want += w["lpips"] * 3 * np.square(x - out)[:rows].mean()
    if w["adversarial"] and 12 >= w["adversarial_start"]:
        fake, real = (
            np.asarray(jax.jit(critic)(params["discriminator"], jnp.float32(i)), np.float64)
            for i in (out, x)
        )
        want += -w["adversarial"] * fake.mean() + 0.5 * (
            relu(1 - real).mean() + relu(1 + fake).mean()
        )
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    np.testing.assert_allclose(metrics["l1"], np.abs(x - out).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["l2"], np.square(x - out).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["commitment"], np.square(z - q).mean(), rtol=1e-5)
    assert ("lpips" in metrics) == bool(w["lpips"]) and ("discriminator" in metrics) == bool(
        w["adversarial"]
    )


def losses(stage, scale):
    """Generator's and discriminator's loss as functions of all parameters, written apart."""
    w = stage.weights

    def generator(params, vectors):
        x, z, q, out, _ = forward(params, vectors)
        return (
            w.l1 * jnp.abs(x - out).mean()
            + w.l2 * jnp.square(x - out).mean()
            + w.commitment * jnp.square(z - jax.lax.stop_gradient(q)).mean()
            - scale * critic(params["discriminator"], out).mean()
        )

    def discriminator(params, vectors):
        x, _, _, out, _ = forward(params, vectors)
        real, fake = critic(params["discriminator"], x), critic(params["discriminator"], out)
        return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())

    return (jax.jit(jax.grad(f)) for f in (generator, discriminator))


def nonzero(tree):
    return any(np.asarray(x).any() for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("adaptive", [pytest.param(False, marks=pytest.mark.slow), True])
def test_generator_and_discriminator_each_follow_their_own_loss(adaptive, start):
    params, extra = start["ema"]
    stage = make(l1=1.0, l2=0.5, commitment=0.25, adversarial=0.3, adversarial_adaptive=adaptive)
    _, _, metrics, gradient = run(stage, params, extra)
    scale = float(metrics["adversarial_scale"])
    assert adaptive or scale == pytest.approx(0.3)
    by_generator, by_discriminator = (f(params, extra.vectors) for f in losses(stage, scale))
    close(gradient["vqvae"], by_generator["vqvae"])
    close(gradient["discriminator"], by_discriminator["discriminator"])
    # each of the two would also move the other's parameters, if it were let
    assert nonzero(by_generator["discriminator"]) and nonzero(by_discriminator["vqvae"])


@pytest.mark.slow  # seven seconds
def test_before_its_start_the_discriminator_neither_learns_nor_counts(start):
    params, extra = start["ema"]
    late, plain = make(l1=1.0, adversarial=0.3, adversarial_start=16), make(l1=1.0)
    _, _, metrics, gradient = run(late, params, extra, step=3)
    *_, without = run(plain, {"vqvae": params["vqvae"]}, extra, step=3)
    assert not nonzero(gradient["discriminator"]) and metrics["adversarial_scale"] == 0
    close(gradient["vqvae"], without["vqvae"], 1e-6)
    *_, gradient = run(late, params, extra, step=4)
    assert nonzero(gradient["discriminator"])


@pytest.mark.slow  # five seconds; the losses above are tested with the adaptive weight
def test_the_adaptive_weight_balances_gradients_at_the_last_layer(start):
    params, extra = start["ema"]
    stage = make(
        l1=1.0, l2=0.5, lpips=0.2, commitment=0.25, adversarial=0.3, adversarial_adaptive=True
    )
    _, _, metrics, _ = run(stage, params, extra)

    def at_last(f):
        """Norm of the gradient by the last convolution, through the whole network."""
        whole = lambda last: f(
            forward(params | {"vqvae": params["vqvae"] | {"last": last}}, extra.vectors)
        )
        g = jax.jit(jax.grad(whole))(params["vqvae"]["last"])
        return np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(g)))

    nll = at_last(
        lambda f: jnp.abs(f[0] - f[3]).mean() + (0.5 + 0.2 * 3) * jnp.square(f[0] - f[3]).mean()
    )
    adversarial = at_last(lambda f: -critic(params["discriminator"], f[3]).mean())
    assert 0 < nll / adversarial < 1e4
    np.testing.assert_allclose(
        metrics["adversarial_scale"], 0.3 * nll / (adversarial + 1e-4), rtol=1e-4
    )


@pytest.mark.slow  # five seconds
def test_the_adaptive_weight_is_bounded(start):
    params, extra = start["ema"]
    silent = params | {"discriminator": jax.tree.map(jnp.zeros_like, params["discriminator"])}
    stage = make(l1=1e3, adversarial=0.3, adversarial_adaptive=True)
    _, _, metrics, gradient = run(stage, silent, extra)
    np.testing.assert_allclose(metrics["adversarial_scale"], 0.3 * 1e4, rtol=1e-5)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_codes_as_a_parameter_follow_the_codebook_loss_alone(start):
    params, extra = start["gradient"]
    params = {k: v for k, v in params.items() if k != "discriminator"}
    stage = make("gradient", l1=1.0, commitment=0.25)
    value, _, metrics, gradient = run(stage, params, extra)
    x, z, q, out, index = (np.asarray(a, np.float64) for a in forward(params, params["codes"]))
    np.testing.assert_allclose(
        value, np.abs(x - out).mean() + 1.25 * np.square(z - q).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["codebook"], np.square(z - q).mean(), rtol=1e-5)
    want, flat, codes = np.zeros((6, 3)), z.reshape(-1, 3), np.asarray(params["codes"], np.float64)
    for i, vector in zip(index.astype(int), flat):
        want[i] += 2 * (codes[i] - vector) / flat.size
    np.testing.assert_allclose(gradient["codes"], want, rtol=1e-4, atol=1e-7)


def test_averaged_codes_are_no_parameter_and_learn_from_the_batch(start):
    params, extra = start["ema"]
    stage = make(l1=1.0)
    _, learned, metrics, gradient = run(stage, {"vqvae": params["vqvae"]}, extra)
    assert set(gradient) == {"vqvae"}
    _, z, _, _, index = forward(params, extra.vectors)
    want = stage.codebook.update_codes(
        jax.random.key(1), extra, z.reshape(-1, 3), index, jnp.int32(0), None
    )
    close(learned, want, 1e-5)
    assert (learned.vectors != extra.vectors).any()
    np.testing.assert_allclose(metrics["codes_in_use"], len(np.unique(index)) / 6, rtol=1e-6)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_what_is_trained_starts_right_and_is_what_is_kept(update, start):
    params, extra = start[update]
    assert set(params) == {"vqvae", "discriminator"} | (
        {"codes"} if update == "gradient" else set()
    )
    x = to_float(jnp.asarray(BATCH["image"]))
    z = np.asarray(
        jax.jit(lambda p: MODEL.apply({"params": p}, x, method="encode"))(params["vqvae"])
    ).reshape(-1, 3)
    away = np.square(np.asarray(extra.vectors)[:, None] - z).sum(-1).min(1)
    assert (away < (0.01 * z.std()) ** 2).all()
    stage = make(update)
    weights = stage.weights_of(params, extra)
    assert set(weights) == {"vqvae", "codes"}
    np.testing.assert_array_equal(
        weights["codes"], params["codes"] if update == "gradient" else extra.vectors
    )
    back, again = stage.from_weights(weights)
    jax.tree.map(np.testing.assert_array_equal, stage.weights_of(back, again), weights)
    jax.tree.map(
        np.testing.assert_array_equal,
        back,
        {k: v for k, v in params.items() if k != "discriminator"},
    )
    np.testing.assert_array_equal(again.total, again.vectors * again.count[:, None])


def test_a_discriminator_cannot_be_made_from_weights(start):
    stage = make(adversarial=1.0)
    with pytest.raises(UserError, match="discriminator"):
        stage.from_weights(stage.weights_of(*start["ema"]))


def test_no_perceptual_term_freezes_nothing():
    assert make(l1=1.0).frozen() == {}


def test_tokens_are_the_nearest_codes_row_by_row(start):
    params, extra = start["ema"]
    stage = make()
    weights = stage.weights_of(params, extra)
    _, z, q, out, index = forward(params, extra.vectors)
    tokens = jax.jit(stage.encode)(weights, BATCH["image"])
    np.testing.assert_array_equal(tokens, index.reshape(4, 16))
    got = jax.jit(stage.decode)(weights, tokens)
    want = np.clip(np.round((np.asarray(out, np.float64) + 1) * 127.5), 0, 255)
    assert got.dtype == jnp.uint8 and got.shape == (4, 8, 8, 3)
    assert np.abs(np.asarray(got, int) - want).max() <= 1 and (got == want).mean() > 0.99
    one = jnp.zeros((1, 16), jnp.int32)  # token 1 is the second of the top row
    changed = (
        jax.jit(stage.decode)(weights, one.at[0, 1].set(3)).astype(int)
        != jax.jit(stage.decode)(weights, one)
    ).any((0, 3))
    assert changed[:2, 2:4].any()


def test_uint8_and_back():
    levels = jnp.arange(256, dtype=jnp.uint8)
    x = to_float(jnp.broadcast_to(levels[None, :, None, None], (1, 256, 1, 3)))
    np.testing.assert_allclose(x[0, :, 0, 0], 2 * np.arange(256) / 255 - 1, atol=1e-6)
    np.testing.assert_array_equal(to_uint8(x)[0, :, 0, 0], levels)
    np.testing.assert_array_equal(to_uint8(jnp.full((1, 1, 1, 3), 7.0)), 255)
    np.testing.assert_array_equal(to_uint8(jnp.full((1, 1, 1, 3), -7.0)), 0)
