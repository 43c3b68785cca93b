"""Published weights as a workdir: `python -m vqd_jax.convert SOURCE --workdir=DIR`.

SOURCE is an official VQ-Diffusion checkpoint, a codec of taming-transformers, or a diffusers folder such as
microsoft/vq-diffusion-ithq; `sample`, `evaluate` and fine-tuning (`--config.init_from=DIR`) then work on the workdir.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vqd_jax import build, command, pipeline
from vqd_jax.checkpoint import Checkpoints
from vqd_jax.convert import clip, codec, released
from vqd_jax.convert.files import read_tree
from vqd_jax.defaults import complete
from vqd_jax.errors import UserError
from vqd_jax.text.clip import ClipTokenizer
from vqd_jax.text.load import Tokenizer

_WORKDIR = flags.DEFINE_string("workdir", None, "The workdir to make.")
_YAML = flags.DEFINE_string("yaml", None, "The config that an official checkpoint comes with, for what its weights do not tell.")
_REMAP = flags.DEFINE_string("remap", None, "The codec's remap file, such as taming_vqvae_2887.pt: the token of each of its codes.")
_CODEC = flags.DEFINE_string("codec", None, "The codec's own file, instead of the one inside SOURCE.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "CLIP's vocabulary: a folder with vocab.json and merges.txt, or OpenAI's "
                                                    "bpe_simple_vocab_16e6.txt.gz.")
_HEADS = flags.DEFINE_integer("heads", None, "Attention heads, where neither SOURCE nor --yaml says it; 16 in all released models.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 256, "Side of the images, where neither SOURCE nor --yaml says it.")


def main(argv: Any) -> None:
    if len(argv) != 2 or not _WORKDIR.value:
        raise UserError("give the weights and where the workdir goes: python -m vqd_jax.convert SOURCE --workdir=DIR")
    workdir = Path(_WORKDIR.value)
    found = released.read(argv[1], _YAML.value)
    source = released.read(_CODEC.value).codec if _CODEC.value else found.codec
    if not source:
        raise UserError(f"{found.name} holds no codec: give its file with --codec")
    remap = next(iter(read_tree(_REMAP.value).values())) if _REMAP.value else None
    source = codec.with_remap(source, remap)
    config = configure(found, source)
    for stage in ("vqvae", "diffusion"):
        if Checkpoints(pipeline.stage_folder(workdir, stage), read_only=True).latest_step() is not None:
            raise UserError(f"{workdir} already holds a model; choose another --workdir")
    stages = {"vqvae": (codec_weights(config, source, found.name), None)}
    print(f"codec: {count(stages['vqvae'][0]['vqvae']):,} parameters, {len(codec.codebook(source))} codes, {config.codebook.codes} tokens")
    if found.denoiser:
        tokens = tokenizer(config, found)
        stages["diffusion"] = (diffusion_weights(config, found, tokens), tokens)
        print(f"denoiser: {count(stages['diffusion'][0]['denoiser']):,} parameters, condition {config.condition.kind}")
        if found.text and config.condition.kind != "text":
            print(f"left out: {len(found.text)} arrays of a text encoder (condition_emb), which this model does not read")
    for stage, (weights, tokens) in stages.items():  # all or nothing: a wrong source leaves no half a workdir
        save(workdir, stage, config, weights, tokens)
    print(f"{workdir}: sample from it with python -m vqd_jax.sample --workdir={workdir}")


def configure(found: released.Found, source: released.Arrays) -> ConfigDict:
    """The config of the workdir."""
    sizes, settings = codec.sizes(source), {name: dict(section) for name, section in found.settings.items()}
    tokens = len(source["inverse"]) if "inverse" in source else sizes["codes"][0]
    wanted = settings.get("codebook", {}).get("codes", tokens)
    if wanted != tokens:
        file = {2887: " (help_folder/statistics/taming_vqvae_2887.pt of the official repository)",
                974: " (help_folder/statistics/taming_vqvae_974.pt of the official repository)"}.get(wanted, "")
        raise UserError(f"the denoiser knows {wanted} tokens and the codec {tokens}: give the remap file{file} with --remap")
    factor = 2 ** (len(sizes["vqvae"]["multipliers"]) - 1)
    side = settings.pop("grid", {}).get("side")
    size = side * factor if side else _IMAGE_SIZE.value
    attention = tuple(size // 2 ** level for level in sizes["attention_levels"])
    settings["vqvae"] = sizes["vqvae"] | {"attention_resolutions": attention}
    settings["codebook"] = {"codes": tokens, "width": sizes["codes"][1]}
    settings["data"] = {"source": "folder", "image_size": size}
    if found.denoiser:
        grid = (size // factor, size // factor)
        network, condition = settings["denoiser"], settings["condition"]
        network["heads"] = _HEADS.value or network["heads"]
        network["positions"] = () if network["positions"] == grid else network["positions"]
        settings["sampling"] = {"guidance": 1.0, "top_p": 0.86}
        if found.tables is not None:
            settings["process"] |= {"schedule": "stored", "log_alpha": tuple(found.tables[0].tolist()),
                                    "log_beta": tuple(found.tables[1].tolist())}
        if condition["kind"] == "text":
            fields = clip.sizes(found.text)
            settings["text"], settings["clip_text"] = {"encoder": "clip"}, {k: fields[k] for k in ("width", "layers", "heads")}
            condition["null"] = "learned" if found.null is not None else "empty"
            if found.null is not None:
                settings["sampling"] = {"guidance": 5.0, "top_p": 1.0}
        elif condition["kind"] == "class" and condition["null"] == "learned":
            settings["sampling"] = {"guidance": 1.5, "top_p": 0.94}
    return complete(settings)


def codec_weights(config: ConfigDict, source: released.Arrays, name: str) -> dict[str, Any]:
    stage = build.vqvae_stage(config)
    images = jax.ShapeDtypeStruct((1, config.data.image_size, config.data.image_size, 3), jnp.float32)
    shape = lambda x, dtype=jnp.float32: jax.ShapeDtypeStruct(np.shape(x), dtype)
    target = {"vqvae": jax.eval_shape(stage.model.init, jax.random.key(0), images)["params"], "codes": shape(codec.codebook(source))}
    target |= {key: shape(source[key], jnp.int32) for key in ("remap", "inverse") if key in source}
    if "quantize.proj.weight" in source:
        codes, width = len(codec.codebook(source)), stage.model.code_width
        target["projection"] = {"kernel": jax.ShapeDtypeStruct((width, codes), jnp.float32),
                                "bias": jax.ShapeDtypeStruct((codes,), jnp.float32)}
    return released.codec_weights(source, target, name)


def tokenizer(config: ConfigDict, found: released.Found) -> Tokenizer:
    if config.condition.kind != "text":
        return build.tokenizer(config, [])
    folder = _TOKENIZER.value or found.tokenizer
    if not folder:
        raise UserError("the checkpoint has no vocabulary: give CLIP's with --tokenizer (a folder with vocab.json and merges.txt, or "
                        "bpe_simple_vocab_16e6.txt.gz, which pip download --no-deps open_clip_torch brings)")
    return ClipTokenizer.load(folder)


def diffusion_weights(config: ConfigDict, found: released.Found, tokens: Tokenizer) -> dict[str, Any]:
    stage = build.diffusion_stage(config, tokens)
    batch = {"text": jax.ShapeDtypeStruct((1, tokens.length), jnp.int32)}
    target, _ = jax.eval_shape(stage.init, jax.random.key(0), batch)
    out = {"denoiser": released.denoiser_weights(found.denoiser, target["denoiser"], found.name)}
    if config.condition.kind == "text":
        out["conditioner"] = {"encoder": released.text_weights(found.text, target["conditioner"]["encoder"], found.name)}
        if found.null is not None:
            null = np.asarray(found.null, np.float32)
            if null.shape != target["conditioner"]["null"].shape:
                raise UserError(f"{found.name}: the null embedding has shape {null.shape}, the text encoder's states "
                                f"{target['conditioner']['null'].shape}")
            out["conditioner"]["null"] = null
    return out


def save(workdir: Path, stage: str, config: ConfigDict, weights: Any, tokens: Tokenizer | None) -> None:
    with Checkpoints(pipeline.stage_folder(workdir, stage), keep=1) as checkpoints:
        items = {"config": json.loads(config.to_json()), "weights": weights, "tokenizer": tokens and tokens.to_json()}
        checkpoints.save(1, items, wait=True)


def count(tree: Any) -> int:
    return sum(np.size(x) for x in jax.tree.leaves(tree))


def run() -> None:
    command.run(main, arguments=1)


if __name__ == "__main__":
    run()
