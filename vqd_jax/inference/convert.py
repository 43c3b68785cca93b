"""Published weights and exported files as the stages of a workdir (`vqd convert`)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from vqd_jax.config import build
from vqd_jax.config.defaults import complete
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import remove_on_error
from vqd_jax.core.prng import root_key
from vqd_jax.data.text.clip import ClipTokenizer
from vqd_jax.data.text.load import Tokenizer, load_tokenizer
from vqd_jax.inference import loading
from vqd_jax.models.weights import clip, released, vqgan
from vqd_jax.models.weights.exported import ITEMS, Stages, is_exported, read
from vqd_jax.models.weights.files import flatten, read_tree
from vqd_jax.models.weights.hub import ENDS, local_folder
from vqd_jax.models.weights.rules import NotFiniteError, check_finite, few
from vqd_jax.runtime.checkpoint import Checkpoints, fit, widen
from vqd_jax.runtime.workdir import Workdir

VOCABULARY = ("vocab.json", "merges.txt")
SIDE = 8192  # of images
LAYERS = ("denoiser.layers", "clip_text.layers", "learned_text.layers", "vqvae.residual_blocks")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extra:
    """What the file of a released model does not say: paths of other files, and sizes."""

    yaml: str | None = None
    remap: str | None = None
    codec: str | None = None
    tokenizer: str | None = None
    heads: int | None = None
    image_size: int = 256
    allow_nan: bool = False


def convert(source: str, workdir: Path, extra: Extra) -> None:
    """Writes the model in `source` to a new workdir, all of it or nothing."""
    for stage in ITEMS:
        checkpoints = Checkpoints(Workdir(workdir).checkpoints(stage), read_only=True)
        if checkpoints.latest_step() is not None:
            raise UserError(f"{workdir} already holds a model; choose another --workdir")
    stages, plan = stages_of(source, extra)
    for stage, items in stages.items():
        print(summary(stage, complete(items["config"]), items["weights"]))
    folders = {stage: Workdir(workdir).checkpoints(stage) for stage in stages}
    with remove_on_error(*folders.values()):
        for stage, items in stages.items():
            stored = {name: value for name, value in items.items() if name != "step"}
            with Checkpoints(folders[stage], keep=1) as checkpoints:
                checkpoints.save(items["step"], stored, wait=True)
        if plan:
            loading.write_plan(workdir, plan)


def stages_of(source: str, extra: Extra) -> tuple[Stages, dict[str, np.ndarray]]:
    """The stages and the plan of a model in a file, in a folder or on the Hugging Face hub."""
    path = Path(source).expanduser()
    named = path.is_file() or path.name.endswith(ENDS)
    if not named and not (path / "model_index.json").is_file():
        path = local_folder(source, (loading.HUB_FILE,)) / loading.HUB_FILE
    try:
        if is_exported(path):
            return exported(path, finite=not extra.allow_nan)
        return published(source, extra), {}
    except NotFiniteError as error:
        raise UserError(f"{error}; --allow_nan converts them as they are") from error


def stored_model(source: str, stage: str | None) -> loading.StoredModel:
    """The model over tokens of that name, by default a diffusion model, with its codec, in anything
    that `stages_of` reads.
    """
    stages, plan = stages_of(source, Extra())
    found = [name for name in ITEMS if name in stages and name != "vqvae"]
    if stage and stage not in found:
        raise UserError(f"{source} has no stage {stage}")
    name = stage or next(iter(found), None)
    chosen = stages[name] if name else {"weights": None, "tokenizer": None}

    def read_plan(file: Any, tokens: int | None) -> dict[str, np.ndarray]:
        return loading.read_plan("", file, tokens) if file else plan

    return loading.StoredModel(
        config=complete(chosen.get("config", stages["vqvae"]["config"])),
        codec_weights=widen(stages["vqvae"]["weights"]),
        stage=name,
        weights=name and widen(chosen["weights"]),
        tokenizer=chosen["tokenizer"],
        checkpoints=tuple(
            loading.StageCheckpoint(stage=part, step=stages[part]["step"], kind="step")
            for part in ("vqvae", name)
            if part
        ),
        plan=read_plan,
    )


def exported(path: Path, *, finite: bool = True) -> tuple[Stages, dict[str, np.ndarray]]:
    """The stages and the plan in a file written by `vqd export`. UserError unless the weights fit
    their config and, if they must be, are `finite`.
    """
    stages, plan = read(path)
    for stage, items in stages.items():
        config, weights = complete(items["config"]), items["weights"]
        for key in LAYERS:
            few(config[key.partition(".")[0]][key.partition(".")[2]])
        if stage == "vqvae":
            codes = (
                len(weights["codes"])
                if "remap" in weights and "codes" in weights
                else config.codebook.groups * config.codebook.codes
            )
            target = codec_target(
                config, codes, remap="remap" in weights, projection="projection" in weights
            )
        else:
            target = target_of(stage, config, load_tokenizer(items["tokenizer"]))
        wide = lambda x: jax.ShapeDtypeStruct(
            x.shape, jnp.float32 if x.dtype == jnp.float16 else x.dtype
        )
        fit(jax.tree.map(wide, weights), target, f"the part {stage!r} of {path}")
        if finite:
            check_finite(flatten_dict({stage: weights}, sep="/"), str(path))
    return stages, plan


def published(name: str, extra: Extra) -> Stages:
    """The stages of a model in one of the released formats."""
    found = released.read(name, extra.yaml)
    source = released.read(extra.codec).codec if extra.codec else found.codec
    if not source:
        raise UserError(f"{found.name} holds no codec: give its file with --codec")
    if extra.remap:
        remap = next(iter(flatten(read_tree(extra.remap)).values()), np.zeros(0))
        source = vqgan.with_remap(source, remap)
    config = configure(found, source, extra)
    items = {"step": 1, "config": json.loads(config.to_json())}
    finite = not extra.allow_nan
    weights = codec_weights(config, source, extra.codec or found.name, finite=finite)
    stages = {"vqvae": items | {"weights": weights}}
    if found.denoiser:
        tokens = tokenizer(config, extra.tokenizer or found.tokenizer)
        stages["diffusion"] = items | {
            "weights": diffusion_weights(config, found, tokens, finite=finite),
            "tokenizer": tokens.to_json(),
        }
        if found.text and config.condition.kind != "text":
            print(
                f"left out: {len(found.text)} arrays of a text encoder (condition_emb), which "
                "this model does not read"
            )
    return stages


def configure(found: released.ReleasedModel, source: released.Arrays, extra: Extra) -> ConfigDict:
    """The config of the workdir, from the shapes of the weights and the settings beside them."""
    sizes = vqgan.sizes(source)
    settings = {name: dict(section) for name, section in found.settings.items()}
    tokens = len(source["inverse"]) if "inverse" in source else sizes["codes"][0]
    wanted = settings.get("codebook", {}).get("codes", tokens)
    if wanted != tokens:
        file = {
            2887: " (help_folder/statistics/taming_vqvae_2887.pt of the official repository)",
            974: " (help_folder/statistics/taming_vqvae_974.pt of the official repository)",
        }.get(wanted, "")
        raise UserError(
            f"the denoiser knows {wanted} tokens and the codec {tokens}: give the remap "
            f"file{file} with --remap"
        )
    factor = 2 ** (len(sizes["vqvae"]["multipliers"]) - 1)
    side = settings.pop("grid", {}).get("side")
    size = side * factor if side else extra.image_size
    if size > SIDE:
        raise UserError(
            f"{found.name}: images of {size:,} pixels a side, at most {SIDE:,} are taken"
        )
    attention = tuple(size // 2**level for level in sizes["attention_levels"])
    settings["vqvae"] = sizes["vqvae"] | {"attention_resolutions": attention}
    settings["codebook"] = {"codes": tokens, "width": sizes["codes"][1]}
    settings["data"] = {"source": "folder", "image_size": size}
    if found.denoiser:
        grid = (size // factor, size // factor)
        network, condition = settings["denoiser"], settings["condition"]
        network["heads"] = extra.heads or network["heads"]
        network["positions"] = () if network["positions"] == grid else network["positions"]
        settings["sampling"] = {"guidance": 1.0, "top_p": 0.86}
        if found.tables is not None:
            settings["process"] |= {
                "schedule": "stored",
                "log_alpha": tuple(found.tables[0].tolist()),
                "log_beta": tuple(found.tables[1].tolist()),
            }
        if condition["kind"] == "text":
            fields = clip.sizes(found.text)
            settings["text"] = {"encoder": "clip"}
            settings["clip_text"] = {k: fields[k] for k in ("width", "layers", "heads")}
            condition["null"] = "learned" if found.null is not None else "empty"
            if found.null is not None:
                settings["sampling"] = {"guidance": 5.0, "top_p": 1.0}
        elif condition["kind"] == "class" and condition["null"] == "learned":
            settings["sampling"] = {"guidance": 1.5, "top_p": 0.94}
    return complete(settings)


def codec_target(
    config: ConfigDict, codes: int, *, remap: bool, projection: bool
) -> dict[str, Any]:
    """Shapes of a codec's weights. A converted codec may have more codes than tokens (`remap`) and
    a Gumbel quantiser (`projection`).
    """
    stage = build.vqvae_stage(config)
    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)
    images = shape(1, config.data.image_size, config.data.image_size, 3)
    width = stage.model.code_width
    target = {
        "vqvae": jax.eval_shape(stage.model.init, root_key(0), images)["params"],
        "codes": shape(codes, width),
    }
    if remap:
        target |= {
            "remap": shape(codes, dtype=jnp.int32),
            "inverse": shape(config.codebook.codes, dtype=jnp.int32),
        }
    if projection:
        target["projection"] = {"kernel": shape(width, codes), "bias": shape(codes)}
    return target


def codec_weights(
    config: ConfigDict, source: released.Arrays, name: str, *, finite: bool = True
) -> dict[str, Any]:
    """The codec's weights of the file or folder `name`, under this package's names."""
    target = codec_target(
        config,
        len(vqgan.codebook(source)),
        remap="remap" in source,
        projection="quantize.proj.weight" in source,
    )
    return released.codec_weights(source, target, name, finite=finite)


def tokenizer(config: ConfigDict, folder: str | Path | None) -> Tokenizer:
    """CLIP's tokenizer from a folder or file; the one of class and unconditional models."""
    if config.condition.kind != "text":
        return build.tokenizer(config, [])
    if not folder:
        raise UserError(
            "the checkpoint has no vocabulary: give CLIP's with --tokenizer (a folder with "
            "vocab.json and merges.txt, or "
            "bpe_simple_vocab_16e6.txt.gz, which pip download --no-deps open_clip_torch brings)"
        )
    return ClipTokenizer.load(local_folder(str(folder), VOCABULARY))


def target_of(stage: str, config: ConfigDict, tokens: Tokenizer) -> dict[str, Any]:
    """Shapes of the weights of a network over tokens and of its conditioner."""
    batch = {"text": jax.ShapeDtypeStruct((1, tokens.length), jnp.int32)}
    init = build.TOKEN_STAGES[stage](config, tokens).init
    return jax.eval_shape(init, root_key(0), batch)[0]


def diffusion_weights(
    config: ConfigDict, found: released.ReleasedModel, tokens: Tokenizer, *, finite: bool = True
) -> dict[str, Any]:
    """The weights of denoiser and conditioner, under this package's names."""
    target, name = target_of("diffusion", config, tokens), found.name
    out = {
        "denoiser": released.denoiser_weights(
            found.denoiser, target["denoiser"], name, finite=finite
        )
    }
    if config.condition.kind == "text":
        encoder = target["conditioner"]["encoder"]
        out["conditioner"] = {
            "encoder": released.text_weights(found.text, encoder, name, finite=finite)
        }
        if found.null is not None:
            null = np.asarray(found.null, np.float32)
            if null.shape != target["conditioner"]["null"].shape:
                raise UserError(
                    f"{found.name}: the null embedding has shape {null.shape}, the states of the "
                    f"text encoder {target['conditioner']['null'].shape}"
                )
            if finite:
                check_finite({"the null embedding": null}, name)
            out["conditioner"]["null"] = null
    return out


def summary(stage: str, config: ConfigDict, weights: dict[str, Any]) -> str:
    """One line about a stage, for people."""
    count = lambda tree: sum(np.size(x) for x in jax.tree.leaves(tree))
    if stage == "vqvae":
        groups = config.codebook.groups
        each = f" in {groups} groups" if groups > 1 else ""
        return (
            f"codec: {count(weights['vqvae']):,} parameters, {len(weights['codes'])} codes{each}, "
            f"{config.codebook.codes} tokens"
        )
    network = "denoiser" if stage == "diffusion" else stage
    return f"{network}: {count(weights[network]):,} parameters, condition {config.condition.kind}"
