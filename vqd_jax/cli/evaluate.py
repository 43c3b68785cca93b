"""How good generated pictures are, by a named protocol: one JSON, a page of pictures and plots.

  vqd evaluate --workdir=DIR [--protocol=NAME]                     of a trained model, whose
  pictures it makes first vqd evaluate --pictures=DIR --reference=DIR_OR_NPZ --protocol=NAME   of a
  folder of pictures, whoever made them

Pictures are made in batches into a folder of their own; a run that was stopped goes on there.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from vqd_jax.cli import runner, sampling_flags
from vqd_jax.config import build
from vqd_jax.core.errors import UserError
from vqd_jax.core.files import atomic_write
from vqd_jax.core.image_grid import save_png
from vqd_jax.data.folder import captions_of
from vqd_jax.data.picture_folder import PictureFolder
from vqd_jax.eval import judge as judging
from vqd_jax.eval import page, protocols
from vqd_jax.eval.collect import ROWS, evenly_spaced
from vqd_jax.eval.evaluation import Evaluation, cache
from vqd_jax.eval.generate import digest
from vqd_jax.eval.judge import Scored
from vqd_jax.eval.protocols import Protocol
from vqd_jax.inference import pipeline
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.hardware import describe_machine
from vqd_jax.runtime.workdir import stage_folder

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "A trained workdir, for example pretrained/emoji; it is not written to."
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    None,
    [*protocols.PROTOCOLS],
    "What is measured, on how much (vqd_jax/eval/protocols.py); what the workdir's config names "
    "by default.",
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "The JSON to write, with a page of pictures and plots beside it; results/NAME.json by default, "
    "with the name of the workdir or folder and that of the protocol, if one is given.",
)
_PICTURES = flags.DEFINE_string(
    "pictures",
    None,
    "The folder of the generated pictures: where they are made, by default beside the "
    "JSON; without --workdir the ones to measure.",
)
_REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "Real pictures instead of the data set's: a folder, or their mu and sigma in a .npz.",
)
_DATA = flags.DEFINE_string(
    "data",
    None,
    "SOURCE:DIR of the data set, such as cub:data/CUB-200, if it is not where the config says, as "
    "for published weights.",
)
_IMAGES = flags.DEFINE_integer(
    "images", None, "Pictures per split, instead of the protocol's.", lower_bound=2
)
_SEED = flags.DEFINE_integer("seed", None, "Instead of the protocol's.", lower_bound=0)
_BATCH = flags.DEFINE_integer("batch", ROWS, "Pictures made at once on each device.", lower_bound=1)
_INCEPTION = flags.DEFINE_string(
    "inception", None, "The weights of InceptionV3 as pytorch-fid publishes them."
)
_CLIP = flags.DEFINE_string(
    "clip",
    None,
    "CLIP's weights: a folder or a name on the Hugging Face hub, instead of the protocol's.",
)
_CACHE = flags.DEFINE_string(
    "cache", None, "Where data sets and tokens are built; ~/.cache/vqd_jax/data by default."
)


def main(argv: Any) -> None:
    if not _WORKDIR.value and not (_PICTURES.value and _REFERENCE.value and _PROTOCOL.value):
        raise UserError(
            "--workdir is missing; for a first try take --workdir=pretrained/emoji, or name "
            "folders with --pictures and "
            "--reference, and a --protocol"
        )
    out = _out()
    result, scored = of_model(out) if _WORKDIR.value else of_folder()
    with atomic_write(out) as part:
        part.write_text(json.dumps(result, indent=1) + "\n")
    if scored:
        save_png(out.with_suffix(".png"), page.page(scored, result["protocol"]["seed"]))
        try:
            page.plot(scored, plots := out.with_name(f"{out.stem}-plots.png"))
            print(f"plots: {plots}")
        except ImportError:
            print("there are no plots without matplotlib: pip install matplotlib")
    print(page.table(result, [*scored]))
    if meanings := {part.likeness.meaning for part in scored.values() if part.likeness}:
        print(f"best and worst in {out.with_suffix('.png')} are by {meanings.pop()}")


def of_model(out: Path) -> tuple[dict[str, Any], dict[str, Scored]]:
    workdir = Path(_WORKDIR.value)
    loading = sampling_flags.loading()
    model = pipeline.load(workdir, **loading)
    if _DATA.value:
        _find_data(model.config, *_DATA.value.partition(":")[::2])
    protocol = protocols.with_overrides(**model.config.evaluation)
    if _PROTOCOL.value not in (None, protocol.name):
        protocol = protocols.get_protocol(_PROTOCOL.value)
    protocol = _with_flags(protocol)
    settings = dict(model.config.sampling) | dict(protocol.sampling) | sampling_flags.settings()
    model.settings(**settings)  # bad ones end here
    judge = judging.make_evaluator(protocol, inception=_INCEPTION.value, clip=_CLIP.value)
    folder = Path(_PICTURES.value) if _PICTURES.value else out.with_suffix("")
    print(
        f"writing {out} and {out.with_suffix('.png')}, and the generated pictures into {folder}",
        flush=True,
    )
    evaluation = Evaluation(
        model=model,
        judge=judge,
        cache=cache(_CACHE.value, workdir),
        settings=settings,
        real=judge.reference(Path(_REFERENCE.value)) if _REFERENCE.value else None,
    )
    parts = {
        name: evaluation.part(
            split, folder / name if len(protocol.parts) > 1 else folder, _BATCH.value
        )
        for name, split in protocol.parts.items()
    }
    scored = {name: part for name, part in parts.items() if part}
    result = {
        "protocol": dataclasses.asdict(protocol),
        "sampling": settings,
        "provenance": provenance(workdir)
        | loading
        | {"weights": digest(model), "batch": _BATCH.value},
    }
    if "retrieval" in protocol.measures:
        result["gallery"] = {
            "images": len(evaluation.source),
            "features": "efficientnet_lite0, cosine",
        }
    result |= {
        measure: getattr(evaluation, measure)()
        for measure in ("reconstruction", "bound")
        if measure in protocol.measures
    }
    result |= {name: part.result for name, part in scored.items()}
    return result | {"config": json.loads(model.config.to_json())}, scored


def of_folder() -> tuple[dict[str, Any], dict[str, Scored]]:
    if given := sampling_flags.settings() | sampling_flags.loading():
        raise UserError(f"--{next(iter(given))} is for the model in a --workdir, and there is none")
    pipeline.compilation_cache()
    protocol = _with_flags(protocols.get_protocol(_PROTOCOL.value))
    judge = judging.make_evaluator(
        judging.without_model(protocol), inception=_INCEPTION.value, clip=_CLIP.value
    )
    if left := [measure for measure in protocol.measures if measure not in judge.protocol.measures]:
        print(f"left out, since there is no model: {', '.join(left)}")
    pictures = PictureFolder(Path(_PICTURES.value))
    captions, _ = captions_of(pictures.path, pictures.files)
    if _IMAGES.value:
        pictures = PictureFolder(
            pictures.path, [pictures.files[i] for i in evenly_spaced(len(pictures), _IMAGES.value)]
        )
    elif len(pictures) != protocol.images:
        print(
            f"{pictures.path} has {len(pictures):,} pictures; those of the protocol "
            f"{protocol.name} are {protocol.images:,}"
        )
    texts = [captions[file][0] for file in pictures.files if captions.get(file)]
    if len(texts) < len(pictures) and "clip_score" in protocol.measures:
        print(
            f"left out, since only {len(texts):,} of the {len(pictures):,} pictures have "
            "captions: clip_score"
        )
    scored = judge.score(
        pictures,
        texts if len(texts) == len(pictures) else [],
        judge.reference(Path(_REFERENCE.value)),
    )
    return {
        "protocol": dataclasses.asdict(judge.protocol),
        "provenance": provenance(None) | {"folder": str(pictures.path)},
        "pictures": scored.result,
    }, {"pictures": scored}


def _find_data(config: ConfigDict, source: str, folder: str) -> None:
    """Has the config take its data set from the folder."""
    known = [
        name
        for name, section in config.items()
        if isinstance(section, ConfigDict) and "path" in section
    ]
    if source not in known or not folder:
        raise UserError(
            f"--data is SOURCE:DIR with one of the sources {', '.join(known)}, got {_DATA.value!r}"
        )
    config.data.source, config[source].path = source, folder


def _with_flags(protocol: Protocol) -> Protocol:
    given = {flag.name: flag.value for flag in (_IMAGES, _SEED) if flag.value is not None}
    return dataclasses.replace(protocol, **given)


def _out() -> Path:
    name = "-".join(
        filter(None, (Path(_WORKDIR.value or _PICTURES.value).resolve().name, _PROTOCOL.value))
    )
    out = Path(_OUT.value) if _OUT.value else Path("results") / f"{name}.json"
    if out.suffix != ".json":
        raise UserError(f"--out is a JSON file, such as results/mine.json, got {out}")
    return out


def provenance(workdir: Path | None) -> dict[str, Any]:
    if workdir is None:
        return describe_machine()
    stored = {
        stage: Checkpoints(stage_folder(workdir, stage), read_only=True)
        for stage in ("vqvae", *build.TOKEN_STAGES)
    }
    steps = {
        stage: step
        for stage, checkpoints in stored.items()
        if (step := checkpoints.latest_step()) is not None
    }
    return {"steps": steps} | describe_machine()


def run() -> None:
    runner.run(main, again="goes on after the pictures that are there")
