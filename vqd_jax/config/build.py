"""From config sections to objects; the only library file that sees a ConfigDict."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vqd_jax.core.errors import UserError
from vqd_jax.data import captioned, emoji, emoji_art, folder, packed, transforms, uncaptioned
from vqd_jax.data.decode_check import check_decoding
from vqd_jax.data.files import Files
from vqd_jax.data.source import Record, Source
from vqd_jax.data.text.bpe import BytePair
from vqd_jax.data.text.clip import ClipTokenizer
from vqd_jax.data.text.labels import Classes, Nothing
from vqd_jax.data.text.load import Tokenizer
from vqd_jax.diffusion import schedules
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.models.autoregressive import Autoregressive
from vqd_jax.models.codebook import Codebook
from vqd_jax.models.conditioning import ClassConditioner, Conditioner, NoConditioner
from vqd_jax.models.denoiser import Denoiser
from vqd_jax.models.discriminator import PatchGAN
from vqd_jax.models.text_clip import ClipText
from vqd_jax.models.text_learned import LearnedText
from vqd_jax.models.vqvae import VQVAE
from vqd_jax.models.weights.hub import local_folder
from vqd_jax.samplers.ancestral import Ancestral, Remask
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.base import Sampler
from vqd_jax.samplers.call_planner import best_counts, fixed_order_cost, random_order_cost
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.direct import DirectSampler
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.samplers.released import PriorRule, ReleasedFast
from vqd_jax.stages.autoregressive import AutoregressiveStage
from vqd_jax.stages.diffusion import DiffusionLoss, DiffusionStage
from vqd_jax.stages.lora import Adapter
from vqd_jax.stages.vqvae import VQVAELoss, VQVAEStage


def pick_source(key: str, value: str, options: dict[str, Any]) -> Any:
    """options[value], or a sentence that names the key and what it accepts."""
    if value not in options:
        raise UserError(f"{key} must be one of {', '.join(options)}, got {value!r}")
    return options[value]


def source(config: ConfigDict, cache: Path) -> Source:
    """The data set, from what `vqd prepare` made of it in the cache if it is there.

    Emoji are squares of data.image_size (or of their own size for random crops), pictures of other
    sets as large as they come.
    """
    found = raw_source(config, cache)
    if not isinstance(found, Files):
        return found
    read = packed.open_packed(str(cache), found, packed_size(config))
    return check_decoding(read, str(cache)) if read is found else read


def raw_source(config: ConfigDict, cache: Path) -> Source:
    """The data set as it is distributed."""
    resolution = emoji_art.SIDE if encodes_online(config) else config.data.image_size
    make = pick_source(
        "data.source",
        config.data.source,
        {
            "emoji": lambda: emoji.Emoji(
                cache=str(cache), resolution=resolution, **_tuples(config.emoji)
            ),
            "folder": lambda: folder.folder(**config.folder),
            "cub": lambda: captioned.cub(**config.cub),
            "flowers": lambda: captioned.flowers(**config.flowers),
            "coco": lambda: captioned.coco(**config.coco),
            "imagenet": lambda: uncaptioned.imagenet(**config.imagenet),
            "ffhq": lambda: uncaptioned.ffhq(**config.ffhq),
        },
    )
    return make()


def encodes_online(config: ConfigDict) -> bool:
    """Whether training sees another part of a picture every time, so that its tokens cannot be
    computed beforehand.
    """
    return config.data.transform != "resize"


def packed_size(config: ConfigDict) -> int | None:
    """The side of the squares that `vqd prepare` makes, None where training needs the whole
    pictures.
    """
    return None if encodes_online(config) else config.data.image_size


def transform(config: ConfigDict, *, training: bool) -> Any:
    """`(image, rng) -> image` of data.image_size."""
    size = config.data.image_size
    resize = transforms.Resize(size=size)
    crop = transforms.RandomCrop(size=size, **config.crop)
    return pick_source(
        "data.transform",
        config.data.transform,
        {
            "resize": resize,
            "crop": crop if training else resize,
            "reference": transforms.Reference(size=size),
        },
    )


def vqvae_stage(config: ConfigDict) -> VQVAEStage:
    model = VQVAE(code_width=config.codebook.width, **_with_dtype(config.vqvae))
    if config.data.image_size % model.downsampling:
        raise UserError(
            f"data.image_size {config.data.image_size} must be a multiple of {model.downsampling}, "
            "the codec's down-factor"
        )
    return VQVAEStage(
        model=model,
        codebook=Codebook(**config.codebook),
        discriminator=PatchGAN(**config.discriminator),
        weights=VQVAELoss(**config.vqvae_loss),
        batch_size=config.vqvae_train.batch_size,
    )


def process(config: ConfigDict) -> MaskAndReplace:
    """The schedule, for the config's k."""
    if config.process.schedule == "stored":
        tables = (config.process.log_alpha, config.process.log_beta)
        return schedules.stored(*(np.array(x, np.float64) for x in tables), config.codebook.codes)
    make = pick_source(
        "process.schedule",
        config.process.schedule,
        {
            "paper": functools.partial(schedules.paper, final_mask=config.process.final_mask),
            "released": schedules.released,
            "absorbing": schedules.absorbing,
            "cosine": schedules.cosine,
            "uniform": schedules.uniform,
        },
    )
    return make(config.process.T, config.codebook.codes)


def sampling(
    config: ConfigDict,
    sampler: str,
    calls: int,
    *,
    entropy: dict[str, np.ndarray] | None = None,
    options: dict[str, Any] | None = None,
    whole: bool = True,
    **guidance_config: Any,
) -> tuple[Sampler | AutoregressiveSampler, GuidanceConfig]:
    """The sampler of that name, and the treatment of p(x_0), from the keys of config.sampling.

    `options` replace keys of the sampler's own section. `entropy` is what `vqd plan` measured for
    each order of `counts`; counts="planned" needs it, "auto" uses it for whole pictures.
    """
    make, section = pick_source(
        "sampling.sampler",
        sampler,
        {
            "ancestral": (Ancestral, {}),
            "released_fast": (ReleasedFast, {}),
            "counts": (Counts, config.counts),
            "remask": (Remask, config.remask),
            "prior_rule": (PriorRule, config.prior_rule),
            "autoregressive": (lambda calls: AutoregressiveSampler(), {}),
            "previous": (lambda calls: DirectSampler(), {}),
        },
    )
    fields = dict(section)
    for key, value in (options or {}).items():
        if key not in fields:
            raise UserError(
                f"the sampler {sampler} has no option {key!r}"
                + (f", only {', '.join(fields)}" if fields else "")
            )
        fields[key] = _like(fields[key], value, f"the option {key} of {sampler}")
    if fields.get("counts") == "auto":
        fields["counts"] = (
            "planned" if whole and entropy and fields["order"] in entropy else "uniform"
        )
    if fields.get("counts") == "planned":
        fields["counts"] = planned_counts(fields["order"], calls - fields["polish"], entropy)
    return make(calls=calls, **_tuples(fields)), GuidanceConfig(**guidance_config)


def planned_counts(
    order: str, calls: int, entropy: dict[str, np.ndarray] | None
) -> tuple[int, ...]:
    if not entropy or order not in entropy:
        raise UserError(
            f"there is no plan for the order {order!r} in this workdir: make one with vqd plan"
        )
    cost = fixed_order_cost if entropy[order].ndim == 2 else random_order_cost
    return best_counts(cost(entropy[order]), calls)[0]


def tokenizer(config: ConfigDict, records: Sequence[Record]) -> Tokenizer:
    """The text encoder's tokenizer, the learned one's trained on the records' captions; or the
    names of their classes.
    """
    captions = [caption for record in records for caption in record.captions]
    names = {record.label: record.captions[0] for record in reversed(records) if record.captions}
    labels = lambda: Classes([names.get(i, "") for i in range(config.condition.classes)])
    kind = pick_source(
        "condition.kind", config.condition.kind, {"text": None, "class": labels, "none": Nothing}
    )
    if kind:
        return kind()
    text = config.learned_text
    make = pick_source(
        "text.encoder",
        config.text.encoder,
        {
            "learned": lambda: BytePair.train(
                captions, vocabulary=text.vocabulary, length=text.length
            ),
            "clip": lambda: ClipTokenizer.load(local_folder(config.clip_text.folder)),
        },
    )
    return make()


def text_encoder(config: ConfigDict, tokenizer: Tokenizer) -> LearnedText | ClipText:
    sizes = {k: v for k, v in config.clip_text.items() if k != "folder"}
    make = pick_source(
        "text.encoder",
        config.text.encoder,
        {
            "learned": lambda: LearnedText(
                **dict(config.learned_text) | {"vocabulary": tokenizer.vocabulary}
            ),
            "clip": lambda: ClipText(
                vocabulary=tokenizer.vocabulary, length=tokenizer.length, **sizes
            ),
        },
    )
    return make()


def conditioner(
    config: ConfigDict, tokenizer: Tokenizer
) -> Conditioner | ClassConditioner | NoConditioner:
    null = pick_source("condition.null", config.condition.null, {"learned": False, "empty": True})
    empty = tuple(tokenizer([""])[0].tolist()) if null and config.condition.kind == "text" else ()
    make = pick_source(
        "condition.kind",
        config.condition.kind,
        {
            "text": lambda: Conditioner(
                encoder=text_encoder(config, tokenizer),
                null=config.condition.null,
                empty=empty,
                frozen=config.text.encoder == "clip",
            ),
            "class": lambda: ClassConditioner(classes=config.condition.classes),
            "none": NoConditioner,
        },
    )
    return make()


def diffusion_stage(config: ConfigDict, tokenizer: Tokenizer) -> DiffusionStage:
    fields = _with_dtype(config.denoiser)
    if fields["attention"] == "auto":
        fields["attention"] = "parts" if jax.default_backend() == "cpu" else "whole"
    denoiser = Denoiser(T=config.process.T, **_tokens_and_condition(config), **fields)
    return DiffusionStage(
        process=process(config),
        denoiser=denoiser,
        conditioner=conditioner(config, tokenizer),
        codec=vqvae_stage(config),
        weights=DiffusionLoss(**config.diffusion_loss),
        adapter=Adapter(**config.adapter),
    )


def autoregressive_stage(config: ConfigDict, tokenizer: Tokenizer) -> AutoregressiveStage:
    """The twin of `diffusion_stage`, from the same sections."""
    sizes = _with_dtype(config.denoiser)
    if sizes.pop("mlp") != "fc":
        raise UserError(
            "the autoregressive stage needs denoiser.mlp fc: a 3x3 convolution would see later "
            "tokens"
        )
    only_of_a_denoiser = ("time", "positions", "predict", "attention")
    sizes = {key: value for key, value in sizes.items() if key not in only_of_a_denoiser}
    return AutoregressiveStage(
        network=Autoregressive(**_tokens_and_condition(config), **sizes),
        conditioner=conditioner(config, tokenizer),
        codec=vqvae_stage(config),
        drop_caption=DiffusionLoss(**config.diffusion_loss).drop_caption,
    )


TOKEN_STAGES = {"diffusion": diffusion_stage, "autoregressive": autoregressive_stage}


def _tokens_and_condition(config: ConfigDict) -> dict[str, Any]:
    """What a network over tokens is told beside its own section."""
    codec = vqvae_stage(config)
    side = config.data.image_size // codec.model.downsampling
    classes = (
        config.condition.classes + (config.condition.null == "learned")
        if config.condition.kind == "class"
        else 0
    )
    return dict(
        codes=config.codebook.codes,
        grid=(side, side),
        condition=config.condition.kind,
        classes=classes,
    )


def _with_dtype(section: ConfigDict) -> dict[str, Any]:
    """The section with its dtype resolved for the machine at hand, and lists as tuples."""
    fields = _tuples(section)
    auto = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    fields["dtype"] = pick_source(
        "dtype", section.dtype, {"auto": auto, "float32": jnp.float32, "bfloat16": jnp.bfloat16}
    )
    return fields


def _like(default: Any, value: Any, what: str) -> Any:
    """The value, if it is of the default's kind and, if a number, finite; a list of whole numbers
    may stand for a name.
    """
    if isinstance(default, str) and isinstance(value, (tuple, list)):
        fits = all(type(x) is int for x in value)
    else:
        fits = isinstance(value, (int, float) if isinstance(default, float) else type(default))
        fits &= isinstance(value, bool) == isinstance(default, bool)
        fits &= (
            not isinstance(value, (int, float)) or abs(value) <= sys.float_info.max
        )  # not of NaN
    if not fits:
        raise UserError(f"{what} is like {default!r}, got {value!r:.80}")
    return value


def _tuples(section: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """The section with lists, as JSON gives them back, as tuples."""
    return {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in section.items()}
