"""What happens when a picture is sampled, call by call: the states, what changed, how sure the
model was, and which words it looked at.
"""

import colorsys
import dataclasses
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from vqd_jax.core.errors import UserError
from vqd_jax.core.image_grid import save_figure
from vqd_jax.inference.pipeline import TextToImage
from vqd_jax.inference.prompts import split_prompt
from vqd_jax.runtime.progress import bar
from vqd_jax.samplers.base import call_times
from vqd_jax.stages import jitted, sampling
from vqd_jax.stages.autoregressive import AutoregressiveStage

COLUMNS = 8  # calls that are shown one by one
WORDS = 10  # in a row
CHANGES = (
    ("as before", "#eceff3"),
    ("drawn", "#2f9e5b"),
    ("replaced by another", "#e8862e"),
    ("masked again", "#8e5bd0"),
)
MASKED = (0.62, 0.62, 0.62)


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a prompt, and how much each position looks at its tokens, mean over layers, heads
    and calls.
    """

    text: str
    weight: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Attributes:
    states: the tokens before the first call, and after each; k is [MASK]. images: of these.
    times: what the network was told at each call. sure: in each, the probability of each position's
    likeliest code.
    words: of each prompt; their weights, with those of what is no word, sum to one at each
    position. No list without text.
    """

    k: int
    states: Int[np.ndarray, "calls_plus_1 n"]
    images: UInt8[np.ndarray, "calls_plus_1 H W 3"]
    call_times: Int[np.ndarray, " calls"]
    sure: Float[np.ndarray, "calls n"]
    words: tuple[tuple[Word, ...], ...]


def explain(
    model: TextToImage, prompt: str, *, seed: int = 0, negative_prompt: str = "", **settings: Any
) -> Explanation:
    """The picture that `model([prompt], seed=…)` draws, by its very program, and what led to it."""
    if isinstance(model.stage, AutoregressiveStage):
        raise UserError(
            "this is an autoregressive model, which draws one token after the other: only a "
            "diffusion is explained"
        )
    sampler, guidance_config = model.settings(**settings)
    conditions, scales = model.conditions([prompt], negative_prompt, guidance_config)
    n = math.prod(model.stage.denoiser.grid)
    told = call_times(sampler, model.process, n)
    states = [np.asarray(sampler.start(sampling.image_keys(seed, 0, 1), model.process, n))]
    images, sure, attention = [model.decode_partly(states[0])[0]], [], []
    watched = model.watch([prompt], seed=seed, negative_prompt=negative_prompt, **settings)
    with bar(len(told), description="explaining", unit="call") as progress:
        for time, (tokens, image) in zip(told, watched, strict=True):
            looked = jitted.attention(
                model.stage,
                model.weights,
                conditions,
                scales,
                guidance_config=guidance_config,
                z=states[-1],
                time=int(time),
            )
            sure.append(looked[0][0])
            attention.append(looked[1])
            states.append(tokens)
            images.append(image[0])
            progress.update()
    words = ()
    if attention[0] is not None:
        mean = np.mean(attention, axis=0)[:, 0]
        words = tuple(
            _words(model, text, ids, weight)
            for (text, _), ids, weight in zip(split_prompt(prompt), conditions.ids[:, 0], mean)
        )
    return Explanation(
        k=model.process.k,
        states=np.concatenate(states),
        images=np.stack(images),
        times=told,
        sure=np.stack(sure),
        words=words,
    )


def _words(
    model: TextToImage, text: str, ids: Int[np.ndarray, " m"], weight: Float[np.ndarray, "n m"]
) -> tuple[Word, ...]:
    """The words of a prompt, and the tokens around them where anything looks at them."""
    words = model.tokenizer.words(text)
    end = max((place for _, places in words for place in places), default=0) + 1
    around = [("(start)", [0]), ("(end)", [end]), ("(padding)", [*range(end + 1, len(ids))])]
    seen = [(name, places) for name, places in around if weight[:, places].any()]
    return tuple(Word(name, weight[:, places].sum(1)) for name, places in [*words, *seen])


def changes(
    before: Int[np.ndarray, " n"], after: Int[np.ndarray, " n"], k: int
) -> Int[np.ndarray, " n"]:
    """What became of each token, as its place in CHANGES."""
    return np.where(before == after, 0, np.where(before == k, 1, np.where(after == k, 3, 2)))


def draw(found: Explanation, prompt: str, out: Path) -> None:
    """All of it as one figure. ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    others = sorted({font.name for font in font_manager.fontManager.ttflist if "CJK" in font.name})
    rows = sum(-(-len(words) // WORDS) for words in found.words)
    heights = [6.6, 1.8, *([0.8 + 1.6 * rows] if rows else [])]
    with (
        pyplot.rc_context({"font.family": ["DejaVu Sans", *others], "font.size": 9}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings(
            "ignore", "Glyph"
        )  # of scripts for which there is no font here: boxes say so
        figure = pyplot.figure(figsize=(14, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        title = (prompt if len(prompt) < 100 else prompt[:99] + "…").replace("$", r"\$")
        _calls(parts[0], found, f"“{title}”, call by call" if prompt else "Call by call")
        _counts(parts[1], found)
        if rows:
            _attention(parts[2], found, rows)
        try:
            save_figure(figure, out, "the explanation to")
        finally:
            pyplot.close(figure)


def _calls(part: Any, found: Explanation, title: str) -> None:
    """Columns of calls: the picture, the tokens, what changed, and how sure the model was."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    calls = len(found.times)
    shown = np.unique(np.linspace(0, calls, min(calls + 1, COLUMNS)).round().astype(int))
    square = lambda x: x.reshape(math.isqrt(x.shape[0]), -1, *x.shape[1:])
    colors = np.array([*map(_color, range(found.k)), MASKED])
    axes = part.subplots(4, len(shown), squeeze=False)
    for column, call in enumerate(shown):
        after = found.states[call]
        axes[0, column].imshow(found.images[call])
        axes[0, column].set_title(
            f"after call {call} of {calls}\nat time {found.times[call - 1]}"
            if call
            else "at the start,\npure noise",
            fontsize=9,
        )
        axes[1, column].imshow(square(colors[after]))
        if not call:
            for axis in axes[2:, column]:
                axis.set_frame_on(False)
            continue
        changed = changes(found.states[shown[column - 1]], after, found.k)
        axes[2, column].imshow(
            square(changed),
            cmap=ListedColormap([color for _, color in CHANGES]),
            vmin=-0.5,
            vmax=len(CHANGES) - 0.5,
        )
        sure = axes[3, column].imshow(square(found.sure[call - 1]), cmap="viridis", vmin=0, vmax=1)
        axes[3, column].set_xlabel(f"mean {found.sure[call - 1].mean():.0%}")
    labels = (
        "the picture;\ngrey: not drawn yet",
        "its tokens:\na colour for each code,\ngrey: [MASK]",
        "what changed since the\ncolumn before",
        "how sure the model was\nin this call: probability of\nthe likeliest code",
    )
    for axis, label in zip(axes[:, 0], labels):
        axis.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    part.colorbar(
        sure, cax=axes[3, -1].inset_axes((1.1, 0, 0.1, 1)), format=lambda x, _: f"{x:.0%}"
    )
    axes[2, -1].legend(
        handles=[Patch(color=color, label=name) for name, color in CHANGES],
        loc="center left",
        bbox_to_anchor=(1.05, 0.5),
        frameon=False,
    )
    part.suptitle(title, fontsize=13, fontweight="bold")


def _counts(part: Any, found: Explanation) -> None:
    """How many tokens each call changed, and in what way."""
    axis = part.subplots()
    each = np.array(
        [
            np.bincount(changes(a, b, found.k), minlength=len(CHANGES))
            for a, b in zip(found.states, found.states[1:])
        ]
    )
    calls, bottom = np.arange(1, len(each) + 1), np.zeros(len(each))
    for kind, (name, color) in list(enumerate(CHANGES))[1:]:
        if each[:, kind].any():
            axis.bar(calls, each[:, kind], bottom=bottom, color=color, label=name)
            bottom += each[:, kind]
    axis.set(xlabel="call", ylabel="tokens", xlim=(0.4, len(each) + 0.6))
    axis.set_title(
        f"How many of the {found.states.shape[1]} tokens each call changed",
        loc="left",
        fontweight="bold",
    )
    for locator in (axis.xaxis.get_major_locator(), axis.yaxis.get_major_locator()):
        locator.set_params(integer=True)
    axis.spines[["top", "right"]].set_visible(False)
    if bottom.any():
        axis.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))


def _attention(part: Any, found: Explanation, rows: int) -> None:
    """A heat map for each word, over the picture."""
    axes, (height, width) = part.subplots(rows, WORDS, squeeze=False), found.images.shape[1:3]
    grey = np.repeat(found.images[-1].mean(-1, keepdims=True).astype(np.uint8), 3, -1)
    for axis in axes.flat:
        axis.set_axis_off()
    row = 0
    for words in found.words:
        for i, word in enumerate(words):
            axis = axes[row + i // WORDS, i % WORDS]
            axis.imshow(grey)
            axis.imshow(
                word.weight.reshape(math.isqrt(len(word.weight)), -1),
                cmap="inferno",
                alpha=0.7,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
            axis.set_title(
                f"{word.text[:20]}\n{word.weight.mean():.0%}".replace("$", r"\$"), fontsize=10
            )
        row += -(-len(words) // WORDS)
    part.suptitle(
        "Where the picture looked at each word: cross-attention, mean over layers, heads and calls"
        + "; the prompts one below the other" * (len(found.words) > 1),
        fontsize=11,
        fontweight="bold",
    )
    part.supxlabel(
        "From dark, where it looked least at that word, to bright, where it looked most. The "
        "percentage is the word's share "
        "of all looks;\n(start), (end) and (padding) are tokens around the words, which networks "
        "often look at when no word "
        "matters.",
        fontsize=9,
    )


def _color(code: int) -> tuple[float, float, float]:
    """Neighbouring codes get far colours."""
    return colorsys.hsv_to_rgb(
        code * 0.618034 % 1, (0.9, 0.55, 0.75)[code % 3], (0.95, 0.85, 0.6)[code // 3 % 3]
    )


def only(prompts: Sequence[str]) -> str:
    """The one prompt that is explained; UserError if there are more."""
    if len(prompts) > 1:
        raise UserError(
            "one picture is explained at a time: give one --prompt, or one --label, not "
            f"{len(prompts)}"
        )
    return prompts[0]
