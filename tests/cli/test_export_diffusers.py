"""The layout of diffusers without PyTorch: which models it cannot hold and why, and the tables of
names read backwards.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.workdirs import FITTING, TABLES, settings
from vqd_jax.config import build
from vqd_jax.models.weights import clip, denoiser, diffusers, vqgan
from vqd_jax.models.weights.rules import Rule, conv, convert, inverse, invert, linear, pointwise

REASONS = [
    ({"condition.kind": "class"}, "condition.kind is 'class' and not 'text'"),
    ({"codebook.groups": 2}, "codebook.groups is 2 and not 1"),
    ({"denoiser.mlp": "conv"}, "denoiser.mlp is 'conv'"),
    ({"text.encoder": "learned"}, "text.encoder is 'learned'"),
    ({"vqvae.resampling": "fold"}, "vqvae.resampling is 'fold'"),
    ({"vqvae.patch_size": 2}, "vqvae.patch_size is 2"),
    ({"denoiser.mlp_ratio": 2}, "denoiser.mlp_ratio is 2"),
    ({"denoiser.head": "tied"}, "denoiser.head is 'tied'"),
    ({"denoiser.time": "sinusoidal"}, "denoiser.time is 'sinusoidal'"),
    ({"denoiser.positions": (16, 16)}, "denoiser.positions are not those of the grid"),
    ({"process.schedule": "paper"}, "process.schedule is not the released one"),
    (
        {
            "process.schedule": "stored",
            "process.log_alpha": TABLES[0],
            "process.log_beta": (np.array(TABLES[1]) + 0.01).tolist(),
        },
        "process.schedule is not the released one",
    ),
    ({"vqvae.multipliers": (2, 1)}, "vqvae.multipliers do not begin with 1"),
    ({"vqvae.channels": 8}, "the norms of its codec have different numbers of groups"),
    ({"clip_text.heads": 2}, "clip_text.heads are not 1"),
]


@pytest.mark.parametrize("change,reason", REASONS, ids=[reason[:40] for _, reason in REASONS])
def test_a_model_that_diffusers_cannot_hold_has_a_reason(change, reason):
    config = settings(FITTING | change)
    (found,) = diffusers.unsupported(config.to_dict(), build.process(config), {})
    assert reason in found


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"denoiser.positions": (8, 8)},
        {"condition.null": "empty"},
        {"vqvae.middle_attention": True},
        {
            "process.schedule": "stored",
            "process.log_alpha": TABLES[0],
            "process.log_beta": TABLES[1],
        },
    ],
)
def test_a_model_that_diffusers_can_hold_has_none(change):
    config = settings(FITTING | change)
    assert diffusers.unsupported(config.to_dict(), build.process(config), {}) == []
    converted = {"codes": 0, "remap": 0, "inverse": 0, "projection": 0}
    assert diffusers.unsupported(config.to_dict(), build.process(config), converted) == [
        "its codec has a remap",
        "its codec has a projection",
    ]


@pytest.mark.parametrize(
    "pattern,template,ours,theirs",
    [
        (r"(?:ab|c)\.(\d+)\.e?", r"\1/f", "3/f", "ab.3.e"),
        (r"(enc|dec)\.(?:(?:x\.)?y\.)?w|v", r"\1/b.c", "dec/b.c", "dec.x.y.w"),
        (r"^out\.", "to.1.", "to.1.", "out."),
        (r"a(\d+)b(\d+)", r"\1-\2", "10-2", "a10b2"),
    ],
)
def test_a_pattern_is_read_backwards(pattern, template, ours, theirs):
    backwards, name = inverse(pattern, template)
    assert re.fullmatch(backwards, ours).expand(name) == theirs
    assert re.sub(pattern, template, theirs) == ours
    assert not re.fullmatch(backwards, ours.replace(".", "_").replace("-", "_").replace("/", "_"))


def test_inverted_rules_give_the_source():
    rng = np.random.default_rng(0)
    new = lambda *shape: rng.normal(size=shape).astype(np.float32)
    join = lambda parts: np.concatenate(parts, axis=-1)
    rules = [
        *(
            Rule(
                source=rf"l(\d)\.{name}",
                target=r"a\1/qkv",
                transform=linear,
                part=str(i),
                join=join,
            )
            for i, name in enumerate("qkv")
        ),
        Rule(source=r"c\.(?:w|weight)", target="c", transform=conv),
        Rule(source="other", target="c", transform=linear),
        Rule(source=r"p\.w", target="p", transform=pointwise),
        Rule(source="b", target="b"),
    ]
    source = {
        "l0.q": new(2, 3),
        "l0.k": new(2, 3),
        "l0.v": new(2, 3),
        "l1.q": new(4, 3),
        "l1.k": new(4, 3),
        "l1.v": new(4, 3),
        "c.w": new(5, 4, 3, 2),
        "p.w": new(2, 7),
        "b": new(3),
    }
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    target = {
        "a0": {"qkv": shape(3, 6)},
        "a1": {"qkv": shape(3, 12)},
        "c": shape(3, 2, 4, 5),
        "p": shape(7, 2),
        "b": shape(3),
    }
    inverted = invert(convert(source, rules, target, name="x"), rules)
    assert inverted.keys() == source.keys()
    for key in source:
        np.testing.assert_array_equal(inverted[key], source[key])
    with pytest.raises(ValueError, match="no rule fills 'strange'"):
        invert({"strange": new(1)}, rules)


@pytest.mark.parametrize(
    "rules", [denoiser.RULES, vqgan.RULES, clip.RULES], ids=["denoiser", "codec", "clip"]
)
def test_every_rule_accepts_the_name_that_it_gives_back(rules):
    for rule in rules:
        pattern, name = inverse(rule.source, rule.target)
        numbered = lambda template: re.sub(
            r"\\\d", "decoder" if "(encoder|decoder)" in rule.source else "3", template
        )
        match = re.fullmatch(rule.source, numbered(name))
        assert match.expand(rule.target) == numbered(rule.target) and re.fullmatch(
            pattern, numbered(rule.target)
        )
