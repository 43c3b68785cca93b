"""One evaluation by a protocol (`vqd evaluate`): of a model, or of a folder of images.

Both return the content of the result file and the scores of each part, by name.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vqd_jax.core.errors import UserError
from vqd_jax.data.captioned_folder import Captions, captions_of
from vqd_jax.eval import emoji64, protocols, token_measures
from vqd_jax.eval.collect import evenly_spaced
from vqd_jax.eval.evaluation import Evaluation, cache_folder
from vqd_jax.eval.evaluator import Scored, make_evaluator, without_model
from vqd_jax.eval.image_sets import ArrayImages, FolderImages
from vqd_jax.eval.intervals import MEANING
from vqd_jax.eval.protocols import Protocol
from vqd_jax.inference import pipeline
from vqd_jax.inference.loading import StageCheckpoint, chosen_checkpoint
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.hardware import describe_machine
from vqd_jax.runtime.workdir import STAGES, Workdir

Result = tuple[dict[str, Any], dict[str, Scored]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What a user chooses instead of the protocol's and the config's settings; None leaves them.

    `data` is SOURCE:DIR of the data set, `reference` a folder of real images or an .npz of them or
    of their statistics, `inception` and `clip` are the weights of these networks.
    """

    protocol: str | None = None
    images: int | None = None
    seed: int | None = None
    reference: str | None = None
    data: str | None = None
    cache: str | None = None
    inception: str | None = None
    clip: str | None = None

    def applied(self, protocol: Protocol) -> Protocol:
        """The protocol with the chosen numbers; fewer images are fewer for the bound, too."""
        chosen = {"images": self.images, "seed": self.seed}
        if self.images:
            chosen["bound_images"] = min(self.images, protocol.bound_images)
        given = {name: value for name, value in chosen.items() if value is not None}
        return dataclasses.replace(protocol, **given)


def evaluate_model(
    workdir: Path,
    choice: Choice,
    *,
    folder: Path,
    batch: int,
    loading: dict[str, Any],
    sampling: dict[str, Any],
) -> Result:
    """Evaluates the model in a workdir. Its images are generated into `folder` in batches (`batch`
    images per device), after those that are there. `loading` and `sampling` are keywords of
    `pipeline.load` and of `TextToImage`.
    """
    model = pipeline.load(workdir, **loading)
    print(f"model: {'; '.join(map(str, model.checkpoints))}", flush=True)
    if choice.data:
        _use_data(model.config, choice.data)
    protocol = protocols.with_overrides(**model.config.evaluation)
    if choice.protocol not in (None, protocol.name):
        protocol = protocols.get_protocol(choice.protocol)
    protocol = choice.applied(protocol)
    settings = dict(model.config.sampling) | dict(protocol.sampling) | sampling
    model.settings(**settings)  # UserError for impossible ones, before hours of sampling
    evaluator = make_evaluator(protocol, inception=choice.inception, clip=choice.clip)
    print(f"generated images go to {folder}", flush=True)
    _say_omissions(protocol)
    size = model.config.data.image_size
    evaluation = Evaluation(
        model=model,
        evaluator=evaluator,
        cache=cache_folder(choice.cache, workdir),
        settings=settings,
        real=evaluator.reference(Path(choice.reference), (size, size))
        if choice.reference
        else None,
    )
    several = len(protocol.parts) > 1
    parts = {
        name: evaluation.evaluate_split(split, folder / name if several else folder, batch)
        for name, split in protocol.parts.items()
    }
    scored = {name: part for name, part in parts.items() if part}
    scored |= emoji64.drawn_parts(evaluation, folder, batch)
    result = {
        "protocol": dataclasses.asdict(protocol),
        "intervals": MEANING,
        "sampling": settings,
        "provenance": provenance(workdir, model.checkpoints)
        | loading
        | {"weights": model.digest, "batch": batch},
    }
    if "retrieval" in protocol.measures:
        result["gallery"] = {
            "images": len(evaluation.originals),
            "features": "efficientnet_lite0, cosine",
        }
    if "reconstruction" in protocol.measures:
        result["reconstruction"] = evaluation.reconstruction()
    if "bound" in protocol.measures:
        result["bound"] = evaluation.bound()
    if "masked_bits" in protocol.measures:
        result["masked_bits"] = token_measures.masked_bits(evaluation)
    if "repair" in protocol.measures:
        result["repair"] = token_measures.repair(evaluation, folder / "repair", batch)
    result |= {name: part.result for name, part in scored.items()}
    return result | {"config": json.loads(model.config.to_json())}, scored


def evaluate_folder(folder: Path, choice: Choice) -> Result:
    """Evaluates generated images in a folder or .npz file, with `choice.protocol` against
    `choice.reference`.
    """
    protocol = choice.applied(protocols.get_protocol(choice.protocol))
    evaluator = make_evaluator(
        without_model(protocol), inception=choice.inception, clip=choice.clip
    )
    left_out = [name for name in protocol.measures if name not in evaluator.protocol.measures]
    if left_out:
        print(f"left out, since there is no model: {', '.join(left_out)}")
    images = evaluator.images(folder)
    captions = _captions(images, protocol)
    if choice.images:
        images = images.subset(evenly_spaced(len(images), choice.images))
    elif len(images) != protocol.images:
        print(
            f"{images.path} has {len(images):,} images; the protocol {protocol.name} has "
            f"{protocol.images:,}"
        )
    files = images.files if captions else ()
    texts = [captions[file][0] for file in files if captions.get(file)]
    if len(texts) < len(images):
        if "clip_score" in protocol.measures:
            print(
                f"left out, since only {len(texts):,} of the {len(images):,} images have captions: "
                "clip_score"
            )
        texts = []
    _say_omissions(protocol)
    real = evaluator.reference(Path(choice.reference), images[0].shape[:2])
    scored = evaluator.score(images, texts, real)
    result = {
        "protocol": dataclasses.asdict(evaluator.protocol),
        "intervals": MEANING,
        "provenance": provenance(None) | {"folder": str(images.path)},
        "pictures": scored.result,
    }
    return result, {"pictures": scored}


def _captions(images: FolderImages | ArrayImages, protocol: Protocol) -> Captions:
    """The captions in a folder. Those that cannot be read are ignored if no measure needs them."""
    if isinstance(images, ArrayImages):
        return {}
    try:
        return captions_of(images.path, images.files)[0]
    except UserError as error:
        if "clip_score" in protocol.measures:
            raise
        print(f"captions are ignored, since the protocol {protocol.name} needs none: {error}")
        return {}


def provenance(
    workdir: Path | None, used: Sequence[StageCheckpoint] | None = None
) -> dict[str, Any]:
    """The machine, and the checkpoints that are `used`, by default those that `pipeline.load` takes
    of the stages in the workdir.
    """
    if workdir is None:
        return describe_machine()
    trained = lambda stage: Checkpoints(Workdir(workdir).checkpoints(stage), read_only=True).steps()
    if used is None:
        used = [chosen_checkpoint(workdir, stage) for stage in STAGES if trained(stage)]
    return {
        "steps": {checkpoint.stage: checkpoint.step for checkpoint in used},
        "checkpoints": {checkpoint.stage: checkpoint.to_json() for checkpoint in used},
    } | describe_machine()


def _say_omissions(protocol: Protocol) -> None:
    if protocol.omits:
        print(f"the protocol {protocol.name} leaves out of the published one: {protocol.omits}")


def _use_data(config: ConfigDict, data: str) -> None:
    """Lets the config take its data set from SOURCE:DIR."""
    source, _, folder = data.partition(":")
    known = [
        name
        for name, section in config.items()
        if isinstance(section, ConfigDict) and "path" in section
    ]
    if source not in known or not folder:
        raise UserError(
            f"--data is SOURCE:DIR with one of the sources {', '.join(known)}, got {data!r}"
        )
    config.data.source, config[source].path = source, folder
