"""The figures of docs/diffusion.md: `python benchmarks/diffusion_plots.py` (a minute on a CPU;
needs matplotlib).
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

from vqd_jax.diffusion import schedules
from vqd_jax.samplers.ancestral import Ancestral
from vqd_jax.samplers.base import call_times, sample_loop
from vqd_jax.samplers.released import ReleasedFast

DOCS = Path(__file__).resolve().parent.parent / "docs"
T, K, N = 100, 16, 4096


def shape(axis, **labels):
    axis.set(**labels)
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def schedule_figure() -> None:
    """What has become of a token at each time."""
    figure, axes = pyplot.subplots(1, 5, figsize=(14, 2.7), layout="constrained", sharey=True)
    for axis, name in zip(axes, ("paper", "released", "cosine", "hybrid", "uniform")):
        process = getattr(schedules, name)(T, K)
        unmasked, intact = np.array(process.unmasked), np.array(process.intact)
        axis.stackplot(
            np.arange(T + 1),
            unmasked * intact,
            unmasked * (1 - intact),
            1 - unmasked,
            labels=("intact", "replaced", "[MASK]"),
            colors=("#3366cc", "#dd6b20", "#c9ced6"),
        )
        shape(axis, title=name, xlabel="t", ylim=(0, 1), xlim=(0, T))
    axes[0].set_ylabel("probability")
    axes[0].legend(fontsize=8, loc="lower left")
    save(figure, "schedules.png")


def masked_figure() -> None:
    """Tokens that are still masked before each call, of the released fast sampler and of the exact
    one.
    """
    process = schedules.released(T, K)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(4))
    figure, axis = pyplot.subplots(figsize=(5.6, 3.2), layout="constrained")
    for name, sampler, color in (
        ("exact, 25 calls", Ancestral(calls=25), "#3366cc"),
        ("released, 26 calls", ReleasedFast(calls=26), "#dd6b20"),
        ("released, 11 calls", ReleasedFast(calls=11), "#b83280"),
    ):
        start = sampler.start(keys, process, N)
        uniform = lambda z, t: jnp.zeros((*z.shape, K))
        _, states = sample_loop(sampler, keys, process, uniform, start, trace=True)
        before = np.concatenate([np.asarray(start)[None], np.asarray(states)[:-1]])
        share = (before == K).mean((1, 2))
        axis.plot(
            call_times(sampler, process, N), share, "o-", markersize=3, color=color, label=name
        )
        axis.annotate(
            f"{share[-1]:.0%}",
            (call_times(sampler, process, N)[-1], share[-1]),
            textcoords="offset points",
            xytext=(-6, 5),
            color=color,
            fontsize=9,
        )
    axis.plot(
        [T, 0], [1, 0], color="black", linewidth=0.8, linestyle=":", label="what the schedule says"
    )
    axis.invert_xaxis()
    shape(axis, xlabel="t given to the network", ylabel="share of [MASK] before the call")
    axis.legend(frameon=False, fontsize=8)
    save(figure, "masked.png")


def save(figure, name: str) -> None:
    figure.savefig(DOCS / name, dpi=120, metadata={"Software": "vqd_jax"})
    pyplot.close(figure)
    print(DOCS / name)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    schedule_figure()
    masked_figure()


if __name__ == "__main__":
    main()
