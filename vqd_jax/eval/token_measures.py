"""Measures of a diffusion model on the tokens of real images: the likelihood of masked tokens, and
the repair of wrong ones by samplers.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vqd_jax.core.errors import UserError
from vqd_jax.data import splits
from vqd_jax.data.batches import ROWS, indices, spread
from vqd_jax.data.loader import sequential
from vqd_jax.diffusion.process import MaskAndReplace
from vqd_jax.eval import intervals
from vqd_jax.eval.evaluation import MIN_IMAGES, Evaluation, RecordImages
from vqd_jax.eval.generate import compute_batches
from vqd_jax.eval.held_out import bits
from vqd_jax.eval.real_images import RealImages
from vqd_jax.inference.prompts import escape_prompt
from vqd_jax.runtime.devices import local_devices
from vqd_jax.samplers.base import Sampler
from vqd_jax.samplers.guidance import GuidanceConfig
from vqd_jax.stages import jitted, sampling

MASK_SHARES = (0.25, 0.5, 0.75, 1.0)  # of an image's tokens
WRONG_SHARES = (0.05, 0.1, 0.2)
SAMPLERS = ("ancestral", "remask", "released_fast", "counts")  # counts with polish

Tokens = Int[np.ndarray, "_ n"]


def masked_bits(evaluation: Evaluation) -> dict[str, Any]:
    """For seen and held-out records, the mean of -log2 p over masked tokens, given the others and
    the first caption; 95 % intervals are over images. {} for processes that never mask.

    Each of MASK_SHARES masks a random choice of tokens, the same one every time, which a larger
    share extends. Unlike the bound it does not count how well replaced tokens are found, and so can
    be compared between noise schedules.
    """
    model, p = evaluation.model, evaluation.protocol
    process = model.stage.process
    if process is None or process.unmasked[-1] == 1:
        return {}
    out: dict[str, Any] = {}
    for split in (splits.TRAIN, *map(p.half_of, (splits.CELLS, splits.ITEMS))):
        records = spread(indices(evaluation.source, split), p.images)
        if not records:
            continue
        tokens = evaluation.tokens(records)
        each = {share: _masked_bits(evaluation, records, tokens, share) for share in MASK_SHARES}
        out[split] = intervals.mean("bits_per_token", np.mean([*each.values()], axis=0)) | {
            "by_share": {
                str(share): intervals.mean("bits_per_token", values)
                for share, values in each.items()
            },
            "images": len(records),
        }
    return out


def _masked_bits(
    evaluation: Evaluation, records: Sequence[int], tokens: Any, share: float
) -> Float[np.ndarray, " records"]:
    """The mean over the masked tokens of each record."""
    model = evaluation.model
    n = model.stage.tokens
    count, time = max(1, round(share * n)), time_of(model.process, share)

    def load(i: int, rng: Any) -> dict[str, Any]:
        order = np.random.default_rng((evaluation.protocol.seed, i)).permutation(n)
        return {
            "tokens": tokens[i],
            "text": model.tokenizer(evaluation.source.records[i].captions[:1])[0],
            "known": order >= count,
        }

    values = []
    for batch, valid in sequential(records, ROWS, load):
        nats = np.asarray(
            jitted.cross_entropy(
                model.stage,
                model.weights,
                batch["tokens"],
                batch["text"],
                batch["known"],
                np.int32(time),
            )
        )
        values.append(np.where(batch["known"], 0, nats).sum(1)[:valid] / count)
    return bits(np.concatenate(values).astype(np.float64))


def time_of(process: MaskAndReplace, share: float) -> int:
    """The time at which the share of masked tokens is nearest to `share`."""
    return 1 + int(np.abs(1 - np.asarray(process.unmasked)[1:] - share).argmin())


def repair(evaluation: Evaluation, folder: Path, batch: int) -> dict[str, Any]:
    """Replaces shares of the tokens of held-out images by random codes, and makes the last quarter
    of the calls of each of SAMPLERS from there.

    Measures the shares of wrong tokens that are restored and of right tokens that are changed, and
    the kernel distance to the real images before and after; the ceiling is that of all right
    tokens. {} for models without diffusion, or for too few records.
    """
    p, model = evaluation.protocol, evaluation.model
    records = evaluation.half_of(splits.CELLS) or evaluation.half_of(splits.ITEMS)
    if model.stage.process is None or len(records) < MIN_IMAGES:
        return {}
    found = evaluation.tokens(records)
    tokens = np.stack([found[i] for i in records]).astype(np.int32)
    captions = [evaluation.source.records[i].captions[0] for i in records]
    prompts = [escape_prompt(caption) for caption in captions]
    real = evaluation.evaluator.collect_real(RecordImages(evaluation.source, records))
    distance = lambda z, what: _distance(evaluation, z, records, real, f"repair: {what}")
    out: dict[str, Any] = {"images": len(records), "ceiling": distance(tokens, "decoded images")}
    wrong = {share: corrupted(tokens, share, model.process.k, p.seed) for share in WRONG_SHARES}
    for share, (z, _) in wrong.items():
        out[f"{share:.0%}"] = {"before": distance(z, f"{share:.0%} wrong")}
    for name in SAMPLERS:
        try:
            sampler, guidance, window = last_calls(evaluation, name)
        except UserError as error:
            print(f"repair: {name} is left out: {error}")
            continue
        for share, (z, replaced) in wrong.items():
            requested = {
                "protocol": p.name,
                "model": model.digest,
                "records": records,
                "seed": p.seed,
                "share": share,
                "with": str((sampler, guidance, window)),
            }

            compute = functools.partial(
                _make_calls, evaluation, prompts, z, batch, sampler, guidance, window
            )
            result = compute_batches(
                folder / f"{name}-{share:.0%}",
                requested,
                len(records),
                batch,
                compute,
                f"repair by {name}, {share:.0%} wrong",
            )
            out[f"{share:.0%}"][name] = (
                restored(result, tokens, replaced)
                | distance(result, f"by {name}")
                | {"calls": window[1] - window[0]}
            )
    return out


def _make_calls(
    evaluation: Evaluation,
    prompts: Sequence[str],
    z: Tokens,
    batch: int,
    sampler: Sampler,
    guidance: GuidanceConfig,
    window: tuple[int, int],
    first: int,
    end: int,
) -> Tokens:
    """The rows first to end of the states z after the calls of the window, computed as a whole
    batch.
    """
    model = evaluation.model
    rows = np.minimum(np.arange(first, first + batch), len(z) - 1)
    conditions, scales = model.conditions([prompts[i] for i in rows], "", guidance)
    devices = local_devices(batch)
    made = sampling.sample(
        model.stage,
        model.on(devices)[0],
        conditions,
        scales,
        seed=evaluation.protocol.seed,
        first=first,
        sampler=sampler,
        guidance_config=guidance,
        window=window,
        z=z[rows],
        devices=devices,
    )
    return np.asarray(made)[: end - first]


def last_calls(
    evaluation: Evaluation, name: str
) -> tuple[Sampler, GuidanceConfig, tuple[int, int]]:
    """A sampler with the calls and the guidance of the evaluation, and its last quarter of calls:
    (first, end). That quarter of `counts` are exact steps (polish), as it keeps what is known.
    """
    model = evaluation.model
    shared = {k: v for k, v in evaluation.settings.items() if k in model.config.sampling}
    calls = shared.get("calls") or model.config.sampling.calls
    last = max(1, round(calls / 4))
    options = {"polish": last} if name == "counts" else {}
    sampler, guidance = model.settings(**shared | {"sampler": name} | options)
    total = model.stage.calls(sampler)
    return sampler, guidance, (total - max(1, round(total / 4)), total)


def corrupted(
    tokens: Tokens, share: float, k: int, seed: int
) -> tuple[Tokens, Int[np.ndarray, "b n"]]:
    """The tokens with a share of each image's replaced by other codes, all equally likely, and
    which those are (1).
    """
    random = np.random.default_rng(seed)
    count = max(1, round(share * tokens.shape[1]))
    order = random.permuted(np.tile(np.arange(tokens.shape[1]), (len(tokens), 1)), axis=1)
    replaced = order < count
    other = (tokens + random.integers(1, k, tokens.shape)) % k
    return np.where(replaced, other, tokens).astype(np.int32), replaced.astype(int)


def restored(result: Tokens, tokens: Tokens, replaced: Int[np.ndarray, "b n"]) -> dict[str, Any]:
    """The shares of replaced tokens that are right again and of the others that are not, means over
    images with 95 % intervals.
    """
    right = result == tokens
    back = (right & (replaced == 1)).sum(1) / replaced.sum(1)
    lost = (~right & (replaced == 0)).sum(1) / (1 - replaced).sum(1)
    shares = {"restored": back, "changed": lost}
    out: dict[str, Any] = {}
    for name, values in shares.items():
        out |= intervals.mean(name, values, bounds=(0.0, 1.0))
    return out


def _distance(
    evaluation: Evaluation, tokens: Tokens, records: list[int], real: RealImages, what: str
) -> dict[str, Any]:
    """The kernel distance of decoded tokens to the real images of the records."""
    images = evaluation.decode(tokens)
    evaluator = evaluation.evaluator
    generated = evaluator.collect_generated(images, len(tokens), what)
    held = [records[i] for i in real.collected.indices]
    values, _ = evaluator.compare(generated, real, records=(records, held))
    return values
