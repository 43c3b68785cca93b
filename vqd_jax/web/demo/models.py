"""The models of a page: a request names the one that draws, by the checksum of its weights."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vqd_jax.core.errors import UserError
from vqd_jax.inference.pipeline import HUB, TextToImage
from vqd_jax.inference.request import GenerationRequest
from vqd_jax.web.demo import api


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model, the workdir (or whatever `pipeline.load` took) that it is of, and its adapter."""

    workdir: str
    model: TextToImage
    adapter: str = ""

    @property
    def name(self) -> str:
        """The name of the workdir, and that of the adapter's: training writes each into a folder
        `adapter`.
        """
        own = Path(self.workdir).resolve().name
        path = Path(self.adapter.removeprefix(HUB).rstrip(os.sep))
        named = path.parent if path.name == "adapter" and len(path.parts) > 1 else path
        return f"{own} + {named.name}" if self.adapter else own

    @functools.cached_property
    def weights(self) -> str:
        return self.model.digest

    def info(self) -> dict[str, Any]:
        return api.model_info(self.model, self.workdir, self.weights) | {"name": self.name}


Asked = tuple[Model, GenerationRequest]


class Models:
    """Parses and answers requests for one of some models, by default the first."""

    def __init__(self, models: Sequence[Model]):
        self.by_weights = {one.weights: one for one in reversed(models)}
        self.default = models[0]

    def info(self) -> dict[str, Any]:
        """The response to GET /api/models; the first model is the default."""
        return {"models": [one.info() for one in reversed(self.by_weights.values())]}

    def parse(self, fields: Any) -> Asked:
        """The model and the request of JSON fields. UserError for what is not accepted."""
        chosen = self.default
        if isinstance(fields, dict) and "model" in fields:
            fields = dict(fields)
            weights = fields.pop("model")
            known = isinstance(weights, str) and weights in self.by_weights
            if not known:
                raise UserError(
                    f"there is no model {weights!r:.80} on this page: GET api/models lists them"
                )
            chosen = self.by_weights[weights]
        return chosen, api.parse_request(chosen.model, fields)

    def draw(self, asked: Asked) -> Iterator[dict[str, Any]]:
        """See `api.draw`."""
        chosen, request = asked
        return api.draw(chosen.model, request, chosen.weights)
