"""A trained model as a repository of the Hugging Face hub (`vqd export --push=OWNER/NAME`): one
file with the model, as `vqd export` writes it, and a model card.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vqd_jax.config.defaults import complete
from vqd_jax.core.errors import UserError, one_line
from vqd_jax.core.text_files import read_json
from vqd_jax.inference import export, loading
from vqd_jax.models.weights import exported
from vqd_jax.runtime.workdir import Workdir

CARD, SAMPLES = "README.md", "samples.png"
TAGS = ("vq-diffusion", "discrete-diffusion", "jax")
TASKS = {"text": "text-to-image", "none": "unconditional-image-generation"}
USE = """## Use

```python
import vqd_jax  # pip install vqd_jax

model = vqd_jax.load("hf://{repository}")
model({prompt}).save("image.png")
```
"""


def push(
    workdir: Path,
    repository: str,
    *,
    checkpoint: str | None = None,
    results: str | None = None,
    license_name: str = "other",
    private: bool = False,
) -> str:
    """Uploads the model of a workdir, with a card made of the workdir's README.md and the file of
    `vqd evaluate`, and returns a line about it. A card that the repository has stays as it is.
    """
    from huggingface_hub import HfApi

    measured = read_json(results) if results else {}
    used = export.checkpoints_of(workdir, checkpoint)
    stages = export.stored(workdir, used)
    with tempfile.TemporaryDirectory() as temporary, _told(repository):
        folder, api = Path(temporary), HfApi()
        plan = loading.read_plan(workdir) if "diffusion" in stages else {}
        exported.write(folder / loading.HUB_FILE, stages, plan)
        samples = Workdir(workdir).samples("diffusion")
        if samples.is_file():
            (folder / SAMPLES).write_bytes(samples.read_bytes())
        url = api.create_repo(repository, private=private, exist_ok=True)
        kept = api.file_exists(repository, CARD)
        if not kept:
            text = card(workdir, repository, stages, measured, license_name)
            (folder / CARD).write_text(text, encoding="utf-8")
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model of vqd_jax")
    which = "; ".join(map(str, used.values()))
    return f"{url} ({which}{'; its model card stays as it was' if kept else ''})"


def card(
    workdir: Path,
    repository: str,
    stages: exported.Stages,
    results: Mapping[str, Any],
    license_name: str,
) -> str:
    """The model card: a YAML header with the measures of `vqd evaluate`, the workdir's README.md,
    and how to use the model.
    """
    from huggingface_hub import EvalResult, ModelCardData

    config = complete(next(reversed(stages.values()))["config"])
    kind = config.condition.kind if len(stages) > 1 else ""
    name = repository.rpartition("/")[2]
    measures = [
        EvalResult(
            task_type=TASKS.get(kind, "image-generation"),
            dataset_type=config.data.source,
            dataset_name=f"{config.data.source}, {part}",
            dataset_split=part,
            metric_type=measure,
            metric_value=round(value, 6),
            metric_config=f"95 % interval {low:.4g} to {high:.4g}",
        )
        for part, measure, value, (low, high) in _measures(results)
    ]
    header = ModelCardData(
        library_name="vqd_jax",
        license=license_name,
        pipeline_tag=TASKS.get(kind),
        tags=list(TAGS),
        model_name=name if measures else None,
        eval_results=measures or None,
    )
    own = workdir / CARD
    body = own.read_text(encoding="utf-8") if own.is_file() else f"# {name}\n"
    parts = [f"---\n{header.to_yaml()}\n---\n", body.rstrip() + "\n"]
    if Workdir(workdir).samples("diffusion").is_file():
        parts.append(f"![Images of the model]({SAMPLES})\n")
    if kind:
        prompt = {"text": '"a prompt in the words of its captions"', "class": "0"}.get(kind, "")
        parts.append(USE.format(repository=repository, prompt=prompt))
    return "\n".join(parts)


def _measures(results: Mapping[str, Any]) -> Iterator[tuple[str, str, float, list[float]]]:
    """(part, measure, value, interval) of the generated images in the results of `vqd evaluate`."""
    for part, scores in results.items():
        generated = scores.get("generated") if isinstance(scores, dict) else None
        for measure, value in generated.items() if isinstance(generated, dict) else ():
            interval = generated.get(f"{measure}_interval")
            if isinstance(value, float) and isinstance(interval, list) and len(interval) == 2:
                yield part, measure, value, interval


@contextlib.contextmanager
def _told(repository: str) -> Iterator[None]:
    """Turns errors of the hub's client, of which there are many kinds, into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = ""
        if status in (401, 403):
            hint = ": log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
        reason = one_line(next(iter(str(error).splitlines()), type(error).__name__))
        raise UserError(
            f"{repository} could not be uploaded to the Hugging Face hub ({reason}){hint}"
        ) from error
