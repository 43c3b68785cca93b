"""Every configuration key reaches something, nothing unknown is accepted, and every shipped config
builds.
"""

import functools
import importlib.util
import inspect
import json
import re

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from helpers import ROOT
from vqd_jax.config import build, sources
from vqd_jax.config.compatibility import REMOVED, RENAMED, RENAMED_VALUES, without_local_paths
from vqd_jax.config.defaults import complete, defaults
from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.data.captioned_folder import captioned_folder
from vqd_jax.data.coco import coco
from vqd_jax.data.cub_flowers import cub, flowers
from vqd_jax.data.dataset_stream import Selection
from vqd_jax.data.emoji import Emoji
from vqd_jax.data.ffhq import ffhq
from vqd_jax.data.imagenet import imagenet
from vqd_jax.data.mixture import Mixture
from vqd_jax.data.source import Record
from vqd_jax.data.transforms import RandomCrop
from vqd_jax.diffusion import schedules
from vqd_jax.eval import protocols
from vqd_jax.models.codebook import Codebook
from vqd_jax.models.denoiser import Denoiser
from vqd_jax.models.discriminator import PatchGAN
from vqd_jax.models.text_clip import ClipText
from vqd_jax.models.text_learned import LearnedText
from vqd_jax.models.vqvae import VQVAE
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.parallel import parallelism
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.samplers.ancestral import Remask
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.samplers.released import PriorRule
from vqd_jax.stages.diffusion import DiffusionLoss
from vqd_jax.stages.lora import Adapter
from vqd_jax.stages.vqvae import VQVAELoss
from vqd_jax.train.dry_run import StubTokenizer, tokenizer
from vqd_jax.train.guard import Guard
from vqd_jax.train.loop import Train
from vqd_jax.train.optim import Optim
from vqd_jax.train.profile import Profile

MODULE = {"parent", "name"}  # every flax module has them
# section: its one constructor, what others give that constructor, and what of the section goes
# elsewhere
CONSUMERS = {
    "mixture": (Mixture, set(), set()),
    "emoji": (Emoji, {"cache", "resolution"}, set()),
    "folder": (captioned_folder, {"condition"}, set()),
    "datasets": (Selection, {"condition"}, set()),
    "cub": (cub, set(), set()),
    "flowers": (flowers, set(), set()),
    "coco": (coco, set(), set()),
    "imagenet": (imagenet, set(), set()),
    "ffhq": (ffhq, set(), set()),
    "crop": (RandomCrop, {"size"}, set()),
    "vqvae": (VQVAE, {"code_width"} | MODULE, set()),
    "codebook": (Codebook, set(), set()),
    "discriminator": (PatchGAN, {"dtype"} | MODULE, set()),
    "vqvae_loss": (VQVAELoss, set(), set()),
    "vqvae_optim": (Optim, set(), set()),
    "vqvae_train": (Train, {"pace"}, set()),
    "denoiser": (
        Denoiser,
        {"codes", "groups", "grid", "T", "condition", "classes"} | MODULE,
        set(),
    ),
    "adapter": (Adapter, set(), set()),
    "learned_text": (LearnedText, {"dtype"} | MODULE, set()),
    "clip_text": (ClipText, {"vocabulary", "length", "dtype"} | MODULE, {"folder"}),
    "process": (
        schedules.absorbing,
        {"k"},
        {"schedule", "final_mask", "replaced", "log_alpha", "log_beta"},
    ),
    "diffusion_loss": (DiffusionLoss, set(), set()),
    "diffusion_optim": (Optim, set(), set()),
    "diffusion_train": (Train, {"pace"}, set()),
    "sampling": (GuidanceConfig, set(), {"sampler", "calls"}),
    "counts": (Counts, {"calls", "groups"}, set()),
    "remask": (Remask, {"calls"}, set()),
    "prior_rule": (PriorRule, {"calls", "groups"}, set()),
    "evaluation": (protocols.with_overrides, set(), set()),
    "guard": (Guard, set(), set()),
    "profile": (Profile, set(), set()),
    "parallel": (parallelism, {"on"}, set()),
}
SETS = ("emoji", "folder", "datasets", "cub", "flowers", "coco", "imagenet", "ffhq")
READ = {"data", "text", "condition", "preview", "held_out", "wandb"}  # read key by key
SOURCES = {p: p.read_text() for p in (ROOT / "vqd_jax").rglob("*.py") if p.name != "defaults.py"}


def slow(name, variant):
    """flowers and coco are built as cub is, as are its variants, and ithq is the largest."""
    many = name in ("flowers", "coco", "ithq") or (name in ("cub", "imagenet") and variant)
    return [pytest.mark.slow] if many else []


def configs():
    """Every file of configs/ and the variants that its header names."""
    for path in sorted((ROOT / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for variant in dict.fromkeys(
            ["", *re.findall(rf"configs/{path.name}:(\w+)", module.__doc__)]
        ):
            yield pytest.param(
                module, variant, id=f"{path.stem}:{variant}", marks=slow(path.stem, variant)
            )


def test_every_section_is_known_here():
    sections = {name for name, value in defaults().items() if isinstance(value, ConfigDict)}
    assert sections == CONSUMERS.keys() | READ
    assert {name for name in defaults()} - sections == {
        "seed",
        "deterministic",
        "stages",
        "init_from",
    }


@pytest.mark.parametrize("section", CONSUMERS)
def test_a_section_is_what_its_constructor_takes(section):
    make, given, elsewhere = CONSUMERS[section]
    wanted = set(inspect.signature(make).parameters) - {"self"}
    assert set(defaults()[section]) - elsewhere == wanted - given
    for key in elsewhere:
        assert (
            any(f"config.{section}.{key}" in text for text in SOURCES.values())
            or key in inspect.signature(build.sampling).parameters
        )


def test_what_is_read_key_by_key_is_all_read():
    unread = [
        f"{section}.{key}"
        for section in READ
        for key in defaults()[section]
        if not any(re.search(rf"\b{section}\.{key}\b", text) for text in SOURCES.values())
    ]
    assert not unread
    for key in ("seed", "deterministic", "stages", "init_from"):
        assert any(re.search(rf"config\.{key}\b", text) for text in SOURCES.values())


def test_nothing_can_be_added_or_change_its_type():
    c = defaults()
    assert c.is_locked
    for section in [c, *(c[name] for name in CONSUMERS), *(c[name] for name in READ)]:
        with pytest.raises((AttributeError, KeyError)):
            section.misspelt = 1
    with pytest.raises(TypeError):
        c.vqvae.channels = "wide"
    with pytest.raises((AttributeError, KeyError)):
        c.update({"denoiser": {"layer": 3}})
    assert defaults().to_json() == c.to_json()


@pytest.mark.parametrize(
    "section", [s for s in CONSUMERS if s not in (*SETS, "sampling", "process", "evaluation")]
)
def test_an_unknown_key_is_refused_by_the_constructor(section):
    make, given, elsewhere = CONSUMERS[section]
    others = dict(size=8, codes=4, grid=(1, 1), T=2, calls=8, code_width=8, vocabulary=9, length=3)
    fields = {k: v for k, v in defaults()[section].items() if k not in elsewhere} | {
        k: others[k] for k in given & others.keys()
    }
    fields |= (
        {"counts": "uniform"} if section == "counts" else {}
    )  # `build.sampling` puts something in the place of auto
    make(**fields)
    with pytest.raises(TypeError, match="misspelt"):
        make(**fields, misspelt=1)


@pytest.mark.parametrize("section", CONSUMERS)
def test_a_key_has_one_default(section):
    """A constructor has the default of config/defaults.py, or none. Exceptions: `build` resolves
    "auto", and without a config there is no guidance.
    """
    make, given, _ = CONSUMERS[section]
    parameters = inspect.signature(make).parameters
    config = defaults()[section]
    different = {
        key: (parameters[key].default, config[key])
        for key in config
        if key in parameters and parameters[key].default is not inspect.Parameter.empty
        if parameters[key].default != config[key] and config[key] != "auto"
    }
    assert different == ({"guidance": (1.0, 2.0)} if section == "sampling" else {})


OLD = {  # as an early version stored it: keys are missing, removed, or have values with other names
    "seed": 3,
    "denoiser": {"layers": 5, "attention": "parts", "remat": True},
    "diffusion_loss": {"auxiliary": 0.25, "antithetic": False, "continuous": False},
    "codebook": {"update": "gradient"},
    "evaluation": {"name": "cells", "images": 7},
}


def test_a_config_of_an_earlier_version_is_read():
    before = json.loads(json.dumps(OLD))
    config = complete(OLD)
    assert before == OLD and config.seed == 3 and set(config) == set(defaults())
    assert (config.denoiser.layers, config.denoiser.attention) == (5, "chunked")
    assert config.denoiser.remat == "full"
    assert config.denoiser.width == defaults().denoiser.width
    assert config.diffusion_loss.auxiliary == 0.25 and "continuous" not in config.diffusion_loss
    assert config.codebook.updates == "gradient"
    assert protocols.with_overrides(**config.evaluation).name == "emoji"
    assert complete(json.loads(config.to_json())).to_json() == config.to_json()


def test_the_tables_of_compatibility_are_of_this_version():
    """Removed keys do not exist, keys with renamed values do, and new names are not renamed."""
    for section, key in REMOVED:
        assert key not in defaults().get(section, {})
    for (section, key), name in RENAMED.items():
        assert key not in [*defaults()[section]] and name in [*defaults()[section]]
    for (section, key), names in RENAMED_VALUES.items():
        assert key in defaults()[section] and not names.keys() & {*names.values()}


@pytest.mark.parametrize(
    "changes,sentence",
    [
        (
            {"diffusion_loss": {"continuous": True}},
            "has diffusion_loss.continuous=True, which this version no longer supports",
        ),
        ({"vqvae": {"newer": 1}}, "has a key 'vqvae.newer' that this version does not know"),
        ({"newer": 1}, "has a key 'newer' that this version does not know"),
        ({"vqvae": 1}, "has vqvae=1, where a section belongs"),
        ({"seed": {"a": 1}}, "has seed={'a': 1}, where a number belongs"),
        ({"denoiser": {"layers": "6"}}, "has denoiser.layers='6', where a number belongs"),
        ({"denoiser": {"scan": 1}}, "has denoiser.scan=1, where a truth value belongs"),
        ({"denoiser": {"layers": None}}, "has denoiser.layers=None, where a number belongs"),
        ({"stages": "vqvae"}, "has stages='vqvae', where a list belongs"),
    ],
)
def test_a_config_that_cannot_be_read_is_a_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        complete(changes)


@pytest.mark.parametrize("stage", ["vqvae", "diffusion"])
def test_the_config_of_the_shipped_model_is_read(stage):
    folder = Workdir(ROOT / "pretrained" / "emoji").checkpoints(stage)
    stored = Checkpoints(folder, read_only=True).restore("config")
    config = complete(stored)
    for section, values in stored.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            renamed = RENAMED_VALUES.get((section, key), {})
            if (section, key) not in REMOVED and not renamed:
                now = config[section][RENAMED.get((section, key), key)]
                assert json.loads(json.dumps(now)) == value, (section, key)
    assert stored["evaluation"]["name"] == "cells" and config.evaluation.name == "emoji"
    vqvae = build.vqvae_stage(config)
    assert vqvae.model.channels == stored["vqvae"]["channels"]


CAPTIONS = [
    "a google style emoji of a red apple",
    "an openmoji style emoji of a teapot",
    "a twitter style emoji of a cat",
]
RECORDS = [Record(item=str(i), captions=(caption,), label=i) for i, caption in enumerate(CAPTIONS)]


@functools.cache  # many variants have the codec of another
def initialised(stage, side, words):
    """The parameters of a stage, traced only."""
    batch = {
        "image": jax.ShapeDtypeStruct((2, side, side, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((2, words), jnp.int32),
    }
    return jax.eval_shape(stage.init, jax.random.key(0), batch)[0]


def shapes(config):
    """Both stages and their parameters."""
    side, words = config.data.image_size, tokenizer(config)
    codec, stage = build.vqvae_stage(config), build.diffusion_stage(config, words)
    return codec, stage, *(initialised(each, side, words.length) for each in (codec, stage))


@pytest.mark.parametrize("module,variant", [*configs()])
def test_every_config_builds(module, variant):
    c = module.get_config(variant) if variant else module.get_config()
    c.denoiser.scan = True  # one layer is traced, not all
    assert c.is_locked and set(c) == set(defaults())
    codec, stage, codec_params, params = shapes(c)
    assert stage.denoiser.codes == stage.process.k == codec.codebook.codes == c.codebook.codes
    assert stage.denoiser.T == stage.process.T == c.process.T
    assert ("discriminator" in codec_params) == bool(c.vqvae_loss.adversarial)
    for name in ("vqvae", "diffusion"):
        train = Train(**c[f"{name}_train"])
        parallelism(**c.parallel).check_batch(train.batch_size)
        optimizer = Optim(**c[f"{name}_optim"]).build(train.examples, Pace(train.batch_size))
        jax.eval_shape(optimizer.init, codec_params if name == "vqvae" else params)
    for training in (True, False):
        assert build.transform(c, training=training).size == c.data.image_size
    assert 1 <= c.sampling.calls <= c.process.T
    assert protocols.with_overrides(**c.evaluation).name == c.evaluation.name
    with pytest.raises(UserError, match="variant"):
        module.get_config("no_such_variant")


def test_a_config_from_a_checkpoint_builds_the_same():
    """There it is JSON, in which tuples are lists."""
    c = defaults()
    back = ConfigDict(json.loads(c.to_json()))
    tokenizer = StubTokenizer(300, 16)
    assert build.vqvae_stage(back) == build.vqvae_stage(c)
    assert build.diffusion_stage(back, tokenizer) == build.diffusion_stage(c, tokenizer)
    assert hash(build.diffusion_stage(back, tokenizer)) == hash(build.diffusion_stage(c, tokenizer))


def test_the_clip_encoder_builds_at_its_released_size():
    c = defaults()
    c.text.encoder = "clip"
    *_, params = shapes(c)
    encoder = params["conditioner"]["encoder"]
    assert encoder["token_embedding"]["embedding"].shape == (49408, 512)
    assert params["conditioner"]["null"].shape == (77, 512)


@pytest.mark.parametrize(
    "key,value,call",
    [
        ("data.source", "lsun", lambda c: sources.source(c, ROOT)),
        ("data.transform", "pad", lambda c: build.transform(c, training=True)),
        ("process.schedule", "sigmoid", build.process),
        ("text.encoder", "t5", lambda c: build.tokenizer(c, RECORDS)),
        ("vqvae.dtype", "float16", build.vqvae_stage),
    ],
)
def test_a_value_that_does_not_exist_is_one_sentence(key, value, call):
    c = defaults()
    c.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"{key.split('.')[1]} must be one of .*, got '{value}'"):
        call(c)


def test_the_final_share_of_masks_reaches_the_schedule():
    c = defaults()
    assert build.process(c) == schedules.paper(100, 512)
    c.process.final_mask = 0.5
    assert build.process(c) == schedules.paper(100, 512, final_mask=0.5)


def test_the_share_of_replaced_tokens_reaches_the_schedule():
    c = defaults()
    c.process.schedule = "hybrid"
    assert build.process(c) == schedules.hybrid(100, 512)
    c.process.replaced = 0.1
    assert build.process(c) == schedules.hybrid(100, 512, replaced=0.1)


def test_images_that_the_codec_cannot_halve_are_one_sentence():
    c = defaults()
    c.data.image_size = 30
    with pytest.raises(UserError, match="data.image_size 30 must be a multiple of 4"):
        build.vqvae_stage(c)


@pytest.mark.parametrize(
    "dtype,want", [("auto", jnp.float32), ("float32", jnp.float32), ("bfloat16", jnp.bfloat16)]
)
def test_auto_is_float32_on_a_cpu(dtype, want):
    c = defaults()
    c.vqvae.dtype = c.denoiser.dtype = dtype
    tokenizer = StubTokenizer(300, 16)
    stage = build.diffusion_stage(c, tokenizer)
    assert stage.denoiser.dtype == stage.codec.model.dtype == want


@pytest.mark.parametrize(
    "attention,want", [("auto", "chunked"), ("full", "full"), ("chunked", "chunked")]
)
def test_attention_is_chunked_on_a_cpu(attention, want):
    c = defaults()
    c.denoiser.attention = attention
    assert build.diffusion_stage(c, StubTokenizer(300, 16)).denoiser.attention == want


def test_a_config_for_other_people_names_no_folder_of_this_machine():
    config = defaults().to_dict()
    config["folder"]["path"], config["data"]["cache"] = "/data/pictures", "my_cache"
    config["clip_text"]["folder"], config["init_from"] = "openai/clip-vit-base-patch32", "~/x"
    got = without_local_paths(config)
    assert got["folder"]["path"] == got["data"]["cache"] == got["init_from"] == ""
    assert got["clip_text"]["folder"] == "openai/clip-vit-base-patch32"
    assert got["denoiser"] == config["denoiser"] and config["folder"]["path"]
