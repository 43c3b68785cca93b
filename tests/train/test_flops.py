"""Operations of a step: those counted by hand, those that XLA counts, and the same ones however the
step is computed.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.interpreters import partial_eval

from helpers import stages as step_stages
from vqd_jax.models import attention
from vqd_jax.models.conditioning import Conditioner
from vqd_jax.models.denoiser import Denoiser
from vqd_jax.models.text_learned import LearnedText
from vqd_jax.runtime.rows import Rows
from vqd_jax.train.cost.flops import flops, of_step
from vqd_jax.train.state import State
from vqd_jax.train.step import make_step


def count(f, *args):
    return flops(jax.make_jaxpr(f)(*args).jaxpr)


def of_stage(stage, rows=8):
    return of_step(stage, {}, {name: x[0] for name, x in step_stages.batch().items()}, rows)


def transformer(**fields):
    denoiser = Denoiser(
        **dict(codes=6, grid=(4, 4), T=6, layers=2, width=8, heads=2, mlp_ratio=3) | fields
    )
    words = Conditioner(encoder=LearnedText(vocabulary=9, length=5, width=8, layers=0, heads=2))
    return dataclasses.replace(step_stages.DIFFUSION, denoiser=denoiser, conditioner=words)


@pytest.mark.slow  # 3 s
def test_a_transformer_by_hand():
    b, n, m, d, k, layers = 8, 16, 5, 8, 6, 2
    attention = (n * d * 3 * d + n * n * d) + (n * n * d + n * d * d)
    across = (n * d * d + m * d * 2 * d + n * m * d) + (n * m * d + n * d * d)
    norms, mlp, head = 2 * d * 2 * d, 2 * n * d * 3 * d, n * d * k
    forward = 2 * b * (layers * (attention + across + norms + mlp) + head)
    assert (
        of_stage(transformer()) == 3 * forward
    )  # its gradients by both factors of each product are two more


def as_it_runs(stage):
    """The count in the gradient as the stage itself computes it."""
    batch = jax.tree.map(jnp.asarray, step_stages.batch())
    params, extra = jax.eval_shape(stage.init, jax.random.key(0), batch)
    loss = lambda params, extra: stage.loss(
        params, extra, {}, batch, jax.random.key(0), jnp.zeros((), int), Rows.of_device(8)
    )
    program = jax.make_jaxpr(lambda *x: jax.grad(loss, has_aux=True)(*x)[0])(params, extra).jaxpr
    return flops(partial_eval.dce_jaxpr(program, [True] * len(program.outvars))[0])


@pytest.mark.parametrize(
    "head,mlp", [("linear", "fc"), pytest.param("tied", "conv", marks=pytest.mark.slow)]
)
@pytest.mark.slow  # 19 s
def test_layers_computed_again_or_in_one_program_need_the_same(head, mlp, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK_ABOVE", 0)
    how = [
        dict(remat=remat, scan=scan)
        for remat in ("none", "products", "full")
        for scan in (False, True)
    ]
    plain, scanned, *again = (transformer(head=head, mlp=mlp, **fields) for fields in how)
    assert of_stage(plain) == of_stage(scanned) == as_it_runs(plain) == as_it_runs(scanned)
    assert {of_stage(stage) for stage in again} == {of_stage(plain)}
    products, _, full, scanned_full = map(as_it_runs, again)
    assert full == scanned_full > products  # the layers' forward pass once more
    assert products > of_stage(plain)  # the products of attention
    in_parts = transformer(head=head, mlp=mlp, attention="chunked")
    assert of_stage(in_parts) == of_stage(plain) and as_it_runs(in_parts) > of_stage(
        in_parts
    )  # the weights of attention once more


@pytest.mark.parametrize(
    "parts", [4, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 2))]
)
def test_a_step_in_parts_has_these_products_and_no_others(parts):
    """The baseline learns nothing beside its parameters, and this optimizer multiplies no matrices."""
    stage, batch = step_stages.AUTOREGRESSIVE, jax.tree.map(jnp.asarray, step_stages.batch())
    params, extra = jax.eval_shape(stage.init, jax.random.key(0), batch)
    optimizer = optax.sgd(0.1)
    state = State(
        step=np.int32(0),
        params=params,
        ema=None,
        opt_state=jax.eval_shape(optimizer.init, params),
        extra=extra,
    )
    program = jax.make_jaxpr(make_step(stage, optimizer, 0.0, parts))(
        state, {}, batch, jax.random.key(0)
    ).jaxpr
    assert flops(partial_eval.dce_jaxpr(program, [True] * len(program.outvars))[0]) == of_stage(
        stage
    )


@pytest.mark.parametrize("name", step_stages.STAGES)
@pytest.mark.slow  # 6 s
def test_each_example_costs_the_same(name):
    """The codec's loss balances two gradients, but over all rows: by as many products."""
    assert of_stage(step_stages.STAGES[name], 8) == 4 * of_stage(step_stages.STAGES[name], 2) > 0


CONVOLUTIONS = {
    "same": dict(),
    "strided": dict(window_strides=(2, 3)),
    "valid": dict(padding="VALID"),
    "spread": dict(rhs_dilation=(2, 1)),
    "groups": dict(feature_group_count=2),
}


def convolution(name):
    options = (
        dict(window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        | CONVOLUTIONS[name]
    )
    return lambda x, w: jax.lax.conv_general_dilated(x, w, **options)


def convolved(name):
    return jnp.ones((3, 8, 9, 4)), jnp.ones(
        (3, 5, 4 // CONVOLUTIONS[name].get("feature_group_count", 1), 6)
    )


def test_a_convolution_by_hand():
    """Three rows of 8, of which the outer two meet the padding once, and five columns of 9: one and
    two columns of padding.
    """
    products = (8 * 3 - 2) * (9 * 5 - 2 * (1 + 2))
    assert count(convolution("same"), *convolved("same")) == 2 * 3 * 4 * 6 * products


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_xla_counts_the_same_in_a_convolution(name):
    f, args = convolution(name), convolved(name)
    assert count(f, *args) == jax.jit(f).lower(*args).cost_analysis()["flops"]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_both_gradients_of_a_convolution_have_its_products(name):
    f, (x, w) = convolution(name), convolved(name)
    g = jnp.ones(jax.eval_shape(f, x, w).shape)
    assert count(lambda x, w, g: jax.vjp(f, x, w)[1](g), x, w, g) == 3 * count(f, x, w)


def test_xla_counts_the_same_in_a_compiled_step():
    """Two layers with nothing between them, so that products are all there is."""

    def step(w, v, x, g):
        out, pull = jax.vjp(lambda w, v: x @ w @ v, w, v)
        return out, pull(g)

    args = jnp.ones((64, 96)), jnp.ones((96, 128)), jnp.ones((256, 64)), jnp.ones((256, 128))
    forward = 2 * 256 * (64 * 96 + 96 * 128)
    assert count(step, *args) == forward + 2 * 256 * (64 * 96 + 2 * 96 * 128)
    assert jax.jit(step).lower(*args).compile().cost_analysis()["flops"] == count(step, *args)


def test_loops_and_branches():
    x = jnp.ones((4, 4))
    once = 2 * 4**3
    assert (
        count(lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=7)[0], x)
        == 7 * once
    )
    assert (
        count(lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x), x)
        == 2 * once
    )
    assert count(lambda x: jax.jit(lambda x: x @ x)(x), x) == once
    with pytest.raises(ValueError, match="while loop"):
        count(lambda x: jax.lax.while_loop(lambda c: c.sum() < 100, lambda c: c @ x, x), x)
    assert count(lambda x: jax.lax.while_loop(lambda c: c.sum() < 100, lambda c: c + x, x), x) == 0
