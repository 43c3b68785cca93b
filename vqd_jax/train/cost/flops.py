"""FLOP of a training step: the matrix products and convolutions of the loss and its gradient.

They are counted in the jaxpr, so they are the model's and not the compiler's: what `remat` computes
again counts once, and the products of the optimizer (Muon) and of moving averages do not count.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters import partial_eval

from vqd_jax.core.prng import root_key
from vqd_jax.runtime.rows import Rows


def of_step(stage: Any, frozen: Any, example: dict[str, Any], rows: int) -> int:
    """FLOP of the gradient of a stage's loss over `rows` examples like `example`, of which only
    shapes and dtypes matter.
    """
    repeat = lambda x: jnp.zeros((rows, *x.shape), x.dtype)
    batch = jax.eval_shape(functools.partial(jax.tree.map, repeat), example)
    plain, here = _plain(stage), Rows.of_device(rows)

    def gradient(params: Any, extra: Any, frozen: Any, batch: Any, step: Any) -> Any:
        loss = lambda params: plain.loss(params, extra, frozen, batch, root_key(0), step, here)
        return jax.grad(loss, has_aux=True)(params)[0]

    params, extra = jax.eval_shape(stage.init, root_key(0), batch)
    program = jax.make_jaxpr(gradient)(params, extra, frozen, batch, np.int32(0)).jaxpr
    return flops(partial_eval.dce_jaxpr(program, [True] * len(program.outvars))[0])


def _plain(module: Any) -> Any:
    """A copy that traces fast and computes nothing twice: `scan` without `remat`, in all nested
    dataclasses that have these fields.
    """
    fields = {
        f.name: getattr(module, f.name)
        for f in dataclasses.fields(module)
        if f.init and f.name not in ("parent", "name")
    }
    changed = {
        name: _plain(value)
        for name, value in fields.items()
        if dataclasses.is_dataclass(value) and not isinstance(value, type)
    }
    changed |= {
        name: value
        for name, value in (("remat", "none"), ("scan", True), ("attention", "full"))
        if name in fields
    }
    return dataclasses.replace(module, **changed) if changed else module


def flops(jaxpr: Jaxpr) -> int:
    """FLOP of all matrix products and convolutions; a multiply-add is two.

    The body of a scan counts as often as it runs, of branches the costliest. ValueError for
    products in a while loop, whose length is not known.
    """
    return sum(map(_equation, jaxpr.eqns))


def _equation(eqn: JaxprEqn) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        return (
            2
            * math.prod(eqn.outvars[0].aval.shape)
            * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        )
    if name == "conv_general_dilated":
        return _convolution(eqn)
    inner = [flops(getattr(jaxpr, "jaxpr", jaxpr)) for jaxpr in jaxprs_in_params(params)]
    if name == "while" and any(inner):
        raise ValueError(
            "the operations of a while loop cannot be counted: its length is not known"
        )
    if name == "cond":
        return max(inner)
    return sum(inner) * params["length"] if name == "scan" else sum(inner)


def _convolution(eqn: JaxprEqn) -> int:
    """FLOP of a convolution, without the products with padding and with the zeros of a dilated
    input (in the gradient of a strided one).
    """
    params, spec, pairs = eqn.params, eqn.params["dimension_numbers"], 1
    (image, kernel), out = [v.aval.shape for v in eqn.invars], eqn.outvars[0].aval.shape
    sizes = [
        [shape[i] for i in dims[2:]]
        for shape, dims in ((image, spec.lhs_spec), (kernel, spec.rhs_spec), (out, spec.out_spec))
    ]
    options = (
        params[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    )
    for n, k, outputs, stride, (low, _), dilation, gap in zip(*sizes, *options, strict=True):
        read = stride * np.arange(outputs)[:, None] + gap * np.arange(k)[None] - low
        pairs *= int(((read >= 0) & (read <= dilation * (n - 1)) & (read % dilation == 0)).sum())
    return 2 * pairs * out[spec.out_spec[0]] * out[spec.out_spec[1]] * kernel[spec.rhs_spec[1]]
