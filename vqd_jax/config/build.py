"""Objects from config sections: transforms, networks, process, losses, samplers, stages."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vqd_jax.core.errors import UserError
from vqd_jax.core.pace import Pace
from vqd_jax.data import transforms
from vqd_jax.data.source import Record
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
from vqd_jax.models.fused_attention import cudnn_takes
from vqd_jax.models.text_clip import ClipText
from vqd_jax.models.text_learned import LearnedText
from vqd_jax.models.vqvae import VQVAE
from vqd_jax.models.weights.hub import local_folder
from vqd_jax.runtime.devices import has_fused_attention, platform
from vqd_jax.samplers.ancestral import Ancestral, Remask
from vqd_jax.samplers.autoregressive import AutoregressiveSampler
from vqd_jax.samplers.base import Sampler
from vqd_jax.samplers.counts import Counts
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.samplers.released import PriorRule, ReleasedFast
from vqd_jax.stages.autoregressive import AutoregressiveStage
from vqd_jax.stages.diffusion import DiffusionLoss, DiffusionStage
from vqd_jax.stages.lora import Adapter
from vqd_jax.stages.vqvae import VQVAELoss, VQVAEStage


def choose(key: str, value: str, options: dict[str, Any]) -> Any:
    """options[value]. UserError that names the key and what it accepts."""
    if value not in options:
        raise UserError(f"{key} must be one of {', '.join(options)}, got {value!r}")
    return options[value]


def encodes_online(config: ConfigDict) -> bool:
    """Whether images are transformed at random in training, so that their tokens cannot be computed
    beforehand.
    """
    return config.data.transform != "resize"


def transform(config: ConfigDict, *, training: bool) -> Any:
    """The function `(image, rng) -> image` that makes squares of data.image_size."""
    size = config.data.image_size
    resize = transforms.Resize(size=size)
    crop = transforms.RandomCrop(size=size, **config.crop)
    return choose(
        "data.transform",
        config.data.transform,
        {
            "resize": resize,
            "crop": crop if training else resize,
            "reference": transforms.Reference(size=size),
        },
    )


def vqvae_stage(config: ConfigDict) -> VQVAEStage:
    """The first stage: codec, codebook, discriminator and losses."""
    model = VQVAE(code_width=config.codebook.width, **_with_dtype(config.vqvae))
    if config.data.image_size % model.downsampling:
        raise UserError(
            f"data.image_size {config.data.image_size} must be a multiple of {model.downsampling}, "
            "the codec's downsampling factor"
        )
    return VQVAEStage(
        model=model,
        codebook=Codebook(**config.codebook),
        discriminator=PatchGAN(**config.discriminator),
        weights=VQVAELoss(**config.vqvae_loss),
        pace=Pace(config.vqvae_train.batch_size),
    )


def process(config: ConfigDict) -> MaskAndReplace:
    """The forward process, with the config's schedule, T and number of codes."""
    if config.process.schedule == "stored":
        log_alpha = np.array(config.process.log_alpha, np.float64)
        log_beta = np.array(config.process.log_beta, np.float64)
        return schedules.stored(log_alpha, log_beta, config.codebook.codes)
    make = choose(
        "process.schedule",
        config.process.schedule,
        {
            "paper": functools.partial(schedules.paper, final_mask=config.process.final_mask),
            "released": schedules.released,
            "absorbing": schedules.absorbing,
            "cosine": schedules.cosine,
            "hybrid": functools.partial(schedules.hybrid, replaced=config.process.replaced),
            "uniform": schedules.uniform,
        },
    )
    return make(config.process.T, config.codebook.codes)


def sampling(
    config: ConfigDict,
    sampler: str,
    calls: int,
    *,
    entropy: Callable[[], dict[str, np.ndarray]] = dict,
    options: dict[str, Any] | None = None,
    t_start: int | None = None,
    **guidance_config: Any,
) -> tuple[Sampler | AutoregressiveSampler, GuidanceConfig]:
    """The sampler of that name and its guidance config, from the keys of config.sampling.

    `options` replace keys of the sampler's own section. `entropy` returns the measurement of `vqd
    plan` for each order of `counts`; counts="planned" needs it, and "auto" uses it if there is one.
    The counts are planned from the time `t_start`, by default T.
    """
    make, section = choose(
        "sampling.sampler",
        sampler,
        {
            "ancestral": (Ancestral, {}),
            "released_fast": (ReleasedFast, {}),
            "counts": (Counts, config.counts),
            "remask": (Remask, config.remask),
            "prior_rule": (PriorRule, config.prior_rule),
            "autoregressive": (lambda calls: AutoregressiveSampler(), {}),
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
    fields = tuples(fields)
    counts = fields.get("counts")
    if counts in ("auto", "planned"):
        fields["counts"] = "uniform"
    chosen = make(calls=calls, **fields)
    if counts in ("auto", "planned"):
        measured = entropy()
        if counts == "planned" or chosen.order in measured:
            chosen = planned_counts(chosen, process(config), measured, t_start)
    return chosen, GuidanceConfig(**guidance_config)


def planned_counts(
    sampler: Counts,
    process: MaskAndReplace,
    entropy: dict[str, np.ndarray],
    t_start: int | None = None,
) -> Counts:
    """The sampler with planned counts. UserError if its order was not measured."""
    if sampler.order not in entropy:
        raise UserError(
            f"there is no plan for the order {sampler.order!r} in this workdir: make one with "
            "vqd plan"
        )
    return sampler.planned(process, entropy[sampler.order], t_start or process.T)


def tokenizer(config: ConfigDict, records: Sequence[Record]) -> Tokenizer:
    """The tokenizer of the text encoder; that of the learned encoder is trained on the captions of
    the records. For class models the names of the classes.
    """
    captions = [caption for record in records for caption in record.texts()]
    names = {record.label: record.captions[0] for record in reversed(records) if record.captions}
    found = max(names, default=-1) + 1
    if config.condition.kind == "class" and found > config.condition.classes:
        raise UserError(
            f"the data have {found} classes: set --config.condition.classes={found} (it is "
            f"{config.condition.classes})"
        )
    labels = lambda: Classes([names.get(i, "") for i in range(config.condition.classes)])
    kind = choose(
        "condition.kind", config.condition.kind, {"text": None, "class": labels, "none": Nothing}
    )
    if kind:
        return kind()
    text = config.learned_text
    make = choose(
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
    """The network that text.encoder names."""
    sizes = {k: v for k, v in config.clip_text.items() if k != "folder"}
    make = choose(
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
    """The module that turns captions or classes into the condition of a network over tokens."""
    null = choose("condition.null", config.condition.null, {"learned": False, "empty": True})
    empty = tuple(tokenizer([""])[0].tolist()) if null and config.condition.kind == "text" else ()
    make = choose(
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
    """The second stage: the denoiser of tokens, with its process, conditioner and loss."""
    fields = _with_dtype(config.denoiser)
    fields["attention"] = _attention(fields)
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
    """The autoregressive baseline of `diffusion_stage`, from the same sections."""
    sizes = _with_dtype(config.denoiser)
    if sizes.pop("mlp") != "fc":
        raise UserError(
            "the autoregressive stage needs denoiser.mlp fc: a 3x3 convolution would see later "
            "tokens"
        )
    denoiser_only = ("time", "positions", "attention")
    sizes = {key: value for key, value in sizes.items() if key not in denoiser_only}
    return AutoregressiveStage(
        network=Autoregressive(**_tokens_and_condition(config), **sizes),
        conditioner=conditioner(config, tokenizer),
        codec=vqvae_stage(config),
        drop_caption=DiffusionLoss(**config.diffusion_loss).drop_caption,
    )


TOKEN_STAGES: dict[str, Callable[[ConfigDict, Tokenizer], Any]] = {
    "diffusion": diffusion_stage,
    "autoregressive": autoregressive_stage,
}


def _tokens_and_condition(config: ConfigDict) -> dict[str, Any]:
    """The arguments of a network over tokens that come from other sections than its own."""
    codec = vqvae_stage(config)
    side = config.data.image_size // codec.model.downsampling
    classes = (
        config.condition.classes + (config.condition.null == "learned")
        if config.condition.kind == "class"
        else 0
    )
    return dict(
        codes=config.codebook.codes,
        groups=config.codebook.groups,
        grid=(side, side),
        condition=config.condition.kind,
        classes=classes,
    )


def _attention(denoiser: dict[str, Any]) -> str:
    """The attention of a denoiser with these fields on the platform that it is built for: instead
    of "auto", or of the kernels of another platform, its own.
    """
    takes = cudnn_takes(denoiser["width"] // max(denoiser["heads"], 1), denoiser["dtype"])
    cudnn = "cudnn" if takes and has_fused_attention() else "full"
    best = {"cpu": "chunked", "tpu": "splash"}.get(platform(), cudnn)
    return best if denoiser["attention"] in ("auto", "cudnn", "splash") else denoiser["attention"]


def _with_dtype(section: ConfigDict) -> dict[str, Any]:
    """The section with its dtype resolved for this machine's devices, and lists as tuples."""
    fields = tuples(section)
    auto = jnp.float32 if platform() == "cpu" else jnp.bfloat16
    fields["dtype"] = choose(
        "dtype", section.dtype, {"auto": auto, "float32": jnp.float32, "bfloat16": jnp.bfloat16}
    )
    return fields


def _like(default: Any, value: Any, what: str) -> Any:
    """Returns the value. UserError unless it has the default's type and is finite; a list of
    integers may replace a string.
    """
    if isinstance(default, str) and isinstance(value, (tuple, list)):
        fits = all(type(x) is int for x in value)
    else:
        fits = isinstance(value, (int, float) if isinstance(default, float) else type(default))
        fits &= isinstance(value, bool) == isinstance(default, bool)
        if isinstance(value, (int, float)):
            fits &= abs(value) <= sys.float_info.max  # False for NaN
    if not fits:
        raise UserError(f"{what} must be like {default!r}, got {value!r:.80}")
    return value


def tuples(section: ConfigDict | dict[str, Any]) -> dict[str, Any]:
    """The section with lists (from JSON) as tuples."""
    return {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in section.items()}
