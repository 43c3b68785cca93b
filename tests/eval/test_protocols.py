"""Every named protocol, and the sections of configs that name one: of today and of older versions."""

import dataclasses
import json

import pytest

from helpers import ROOT
from vqd_jax.config.defaults import complete, defaults
from vqd_jax.core.errors import UserError
from vqd_jax.eval import protocols
from vqd_jax.eval.protocols import PROTOCOLS, Protocol
from vqd_jax.eval.run import Choice

STATED = {  # what is known of each from its authors: pictures, real ones, truncation, resizing
    "vqdiffusion-cub": (30_000, "own", {}, "pytorch-fid"),
    "vqdiffusion-flowers": (30_000, "own", {}, "pytorch-fid"),
    "vqdiffusion-coco": (30_000, "own", {}, "pytorch-fid"),
    "vqdiffusion-imagenet": (50_000, "train", {"top_p": 0.869}, "pytorch-fid"),
    "vqdiffusion-ffhq": (50_000, "train", {}, "pytorch-fid"),
    "adm": (50_000, "train", {}, "tf-legacy"),
    "clean": (50_000, "train", {}, "clean"),
    "cmmd": (30_000, "own", {}, "pytorch-fid"),
    "emoji": (512, "own", {}, "pytorch-fid"),
    "emoji64": (500, "own", {}, "pytorch-fid"),
    "emoji64-validation": (500, "own", {}, "pytorch-fid"),
}


def test_the_named_protocols_are_those_that_are_stated():
    assert {
        p.name: (p.images, p.reference, dict(p.sampling), p.resizing) for p in PROTOCOLS.values()
    } == STATED
    assert all(name == p.name for name, p in PROTOCOLS.items())
    adm = PROTOCOLS["adm"]
    assert (adm.neighbours, adm.held, adm.closed_balls) == (3, 10_000, True)
    assert adm.omits.startswith("sFID") and not PROTOCOLS["clean"].omits
    for p in PROTOCOLS.values():
        stored = json.loads(json.dumps(dataclasses.asdict(p)))
        assert (
            Protocol(**stored | {"measures": tuple(stored["measures"])}) == p
        )  # a result says all of it
        assert (
            p.name.startswith(("emoji", "cmmd"))
            or {"frechet"} <= set(p.measures)
            and p.features == "inception"
        )


def test_settings_are_chosen_on_the_other_half():
    test, validation = PROTOCOLS["emoji64"], PROTOCOLS["emoji64-validation"]
    assert (test.half, validation.half) == ("test", "validation")
    assert test.parts["held_out_cells"] == "held_out_cells/test"
    assert validation.parts["held_out_cells"] == "held_out_cells/validation"
    assert {*test.measures} - {*validation.measures} == {"free_colours", "synonyms"}


def test_a_section_names_a_protocol_and_may_change_its_numbers():
    assert protocols.with_overrides(**defaults().evaluation) == PROTOCOLS["emoji"]
    changed = protocols.with_overrides(name="clean", images=9, seed=4)
    assert changed == dataclasses.replace(PROTOCOLS["clean"], images=9, seed=4)


def test_the_shipped_model_names_its_protocol_by_the_former_name():
    stored = json.loads(
        (
            ROOT
            / "pretrained"
            / "emoji"
            / "diffusion"
            / "checkpoints"
            / "8500"
            / "config"
            / "metadata"
        ).read_text()
    )
    published = json.loads((ROOT / "results" / "emoji.json").read_text())["protocol"]
    assert stored["evaluation"]["name"] == "cells" and published["name"] == "emoji"
    for key in set(stored["evaluation"]) - {"name"}:
        assert stored["evaluation"][key] == published[key]
    assert protocols.with_overrides(**complete(stored).evaluation) == PROTOCOLS["emoji"]


@pytest.mark.parametrize("images,want", [(None, (512, 1024)), (7, (7, 7)), (2000, (2000, 1024))])
def test_fewer_images_are_fewer_for_the_bound_too(images, want):
    protocol = Choice(images=images).applied(PROTOCOLS["emoji"])
    assert (protocol.images, protocol.bound_images) == want


@pytest.mark.parametrize(
    "changes,sentence",
    [
        (
            dict(captions="all"),
            "captions of the protocol p must be one of first, random, got 'all'",
        ),
        (dict(features="dino"), "features of the protocol p must be one of inception, vgg16"),
        (
            dict(resizing="area"),
            "resizing of the protocol p must be one of pytorch-fid, tf-legacy, clean, got 'area'",
        ),
        (dict(measures=("fid",)), "has the measure 'fid'; there are frechet, kid"),
        (
            dict(features="vgg16", measures=("inception_score",)),
            "the measure inception_score of the protocol p needs inception features, got vgg16",
        ),
        (
            dict(half="train"),
            "half of the protocol p must be one of both, validation, test",
        ),
        (dict(images=0), "must be at least 1"),
        (dict(subset_size=1), "at least 1, its subset_size at least 2"),
        (dict(held=-1), "must not be negative"),
        (dict(seed=-1), "must not be negative"),
    ],
)
def test_impossible_protocols_are_an_error(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        Protocol(**dict(name="p", images=5) | changes)


def test_an_unknown_protocol_is_an_error():
    with pytest.raises(
        UserError, match="there is no protocol 'fid', only emoji, emoji64, emoji64-valid"
    ):
        protocols.get_protocol("fid")
