"""One workdir: its config, its data, and the stages that train in it, in order."""

import functools
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vqd_jax.config import build
from vqd_jax.core.errors import UserError
from vqd_jax.core.image_grid import grid, save_png
from vqd_jax.data import batches
from vqd_jax.data.text.load import load_tokenizer
from vqd_jax.data.token_cache import cached_tokens, encode_records
from vqd_jax.eval import held_out
from vqd_jax.inference import pipeline
from vqd_jax.models.weights.clip import read_clip
from vqd_jax.models.weights.hub import local_folder
from vqd_jax.models.weights.released import text_weights
from vqd_jax.runtime import distributed
from vqd_jax.runtime.checkpoint import Checkpoints, fit, widen
from vqd_jax.runtime.log import Log
from vqd_jax.runtime.sharding import parallelism
from vqd_jax.runtime.workdir import stage_folder
from vqd_jax.stages import jitted, lora
from vqd_jax.train import dry_run, loop
from vqd_jax.train.guard import Guard
from vqd_jax.train.optim import Optim
from vqd_jax.train.profile import Profile
from vqd_jax.train.resume import check_same_model, with_model_of
from vqd_jax.web.report import page


class Experiment:
    """One workdir: its config, its data, and the stages that train in it."""

    def __init__(self, config: ConfigDict, workdir: Path):
        if config.init_from:
            here = (
                pipeline.token_stage(workdir) and not Path(config.init_from).exists()
            )  # a run that has begun no longer needs that folder
            config = with_model_of(workdir if here else config.init_from, config)
        if config.adapter.rank and not (config.init_from and config.stages == ("diffusion",)):
            raise UserError(
                "an adapter changes a trained diffusion model: say which with "
                "--config.init_from=DIR"
            )
        self.config, self.workdir = config, workdir
        self.keeper, self.first = distributed.primary_process(workdir), jax.process_index() == 0
        self.shared = distributed.is_shared(self.keeper)
        self.scratch = None if self.first else tempfile.TemporaryDirectory()
        self.output = workdir if self.first else Path(self.scratch.name)  # of logs and pictures
        self.cache = Path(config.data.cache) if config.data.cache else workdir / "cache"
        self.parallel = parallelism(**config.parallel)
        self.key = jax.random.key(config.seed)
        print(f"workdir {workdir}, built data in {self.cache}", flush=True)
        self.source = build.source(config, self.cache)
        counts = {
            name: len(batches.indices(self.source, name))
            for name in ("train", "held_out_cells", "held_out_items")
        }
        print("images: " + ", ".join(f"{n} {name}" for name, n in counts.items()), flush=True)
        self.transform = build.transform(config, training=True)
        self.resize = build.transform(config, training=False)
        self.common = dict(
            guard=Guard(**config.guard),
            profile=Profile(**config.profile),
            describe=lambda i: self.source.records[i].item,
            report=lambda: page.refresh(workdir) if self.first else None,
        )
        self.loading = dict(
            seed=config.seed, process_index=jax.process_index(), process_count=jax.process_count()
        )

    def check(self) -> None:
        """Builds what every stage is made of, so that a wrong value ends the run now and not after
        hours in another stage.
        """
        config = self.config
        for name in config.stages:
            rehearsed = dry_run.dry_run(config, name)
            self.parallel.check_batch(rehearsed.train.batch_size, rehearsed.train.accumulate)
        over_tokens = set(config.stages) & set(build.TOKEN_STAGES)
        if (
            over_tokens
            and config.condition.kind == "text"
            and config.text.encoder == "clip"
            and not config.init_from
        ):
            build.tokenizer(config, [])  # from its file
        if "diffusion" in config.stages:
            build.sampling(config, **config.sampling)

    def run(self) -> None:
        self.check()
        for i, name in enumerate(self.config.stages):
            stage = self.vqvae if name == "vqvae" else functools.partial(self.over_tokens, name)
            started = time.perf_counter()
            stage(jax.random.fold_in(self.key, i))
            distributed.barrier()  # until what was saved is there
            print(f"{name} done ({time.perf_counter() - started:.0f} s)", flush=True)

    def vqvae(self, key: Any) -> None:
        config, stage = self.config, build.vqvae_stage(self.config)
        train = loop.Train(**config.vqvae_train)
        with self._checkpoints("vqvae", train) as checkpoints:
            if self._done("vqvae", checkpoints, train):
                return
            loader = batches.image_loader(
                self.source, self.transform, batch_size=train.batch_size, **self.loading
            )
            frozen, folder = stage.frozen(), self.output / "vqvae"
            evaluate = held_out.CodecEvaluation(
                stage=stage,
                source=self.source,
                transform=self.resize,
                folder=folder,
                lpips=("vgg",) * config.held_out.lpips,
                examples=config.held_out.examples,
            )
            loop.run(
                "vqvae",
                stage,
                train=train,
                optim=Optim(**config.vqvae_optim),
                loader=loader,
                parallel=self.parallel,
                checkpoints=checkpoints,
                log=Log(folder),
                key=key,
                frozen=frozen,
                items={"config": _plain(config)},
                evaluate=evaluate,
                refresh=lambda: self._hand_out(checkpoints),
                **self.common,
            )

    def over_tokens(self, name: str, key: Any) -> None:
        """The diffusion stage, or its autoregressive twin."""
        config, train = self.config, loop.Train(**self.config.diffusion_train)
        codec = self._codec()
        with self._checkpoints(name, train) as checkpoints:
            if self._done(name, checkpoints, train):
                return
            stored = (
                checkpoints
                if checkpoints.has("tokenizer")
                else self._origin(name)
                if config.init_from
                else None
            )
            if stored:
                tokenizer = load_tokenizer(stored.restore("tokenizer"))
            else:
                tokenizer = build.tokenizer(
                    config, [self.source.records[i] for i in batches.indices(self.source, "train")]
                )
            stage, folder = build.TOKEN_STAGES[name](config, tokenizer), self.output / name
            encode = lambda images: jitted.encode(stage.codec, codec, images)
            source = batches.Resized(self.source, self.resize)
            online = build.encodes_online(config)
            examined = batches.evaluation_records(source, config.held_out.examples)
            tokens = (
                encode_records(source, itertools.chain(*examined.values()), encode)
                if online
                else cached_tokens(self.cache, source, codec, encode)
            )
            loader = batches.pair_loader(
                self.source,
                None if online else tokens,
                self.transform,
                tokenizer,
                drop_words=config.data.drop_words,
                batch_size=train.batch_size,
                **self.loading,
            )
            prompts, _ = self.prompts()
            bound = held_out.Bound(
                stage=stage,
                source=source,
                tokens=tokens,
                tokenizer=tokenizer,
                draws=config.held_out.draws,
            )
            sampler, guidance_config = build.sampling(
                config, **dict(config.sampling) | pipeline.fixed_sampling(stage)
            )
            evaluate = held_out.TokenEvaluation(
                bound=bound,
                codec=codec,
                folder=folder,
                examples=config.held_out.examples,
                prompts=prompts,
                sampler=sampler,
                guidance_config=guidance_config,
            )

            def keep_and_evaluate(step: int, weights: Any) -> dict[str, float]:
                lora.write(self.output / lora.FILE, stage.adapter, weights)
                return evaluate(step, weights)

            loop.run(
                name,
                stage,
                train=train,
                optim=Optim(**config.diffusion_optim),
                loader=loader,
                parallel=self.parallel,
                checkpoints=checkpoints,
                log=Log(folder),
                key=key,
                frozen=codec if online else {},
                evaluate=keep_and_evaluate if config.adapter.rank else evaluate,
                items={"config": _plain(config), "tokenizer": tokenizer.to_json()},
                init_from=functools.partial(self._begin, name),
                refresh=lambda: self._hand_out(checkpoints),
                **self.common,
            )

    def prompts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Prompts of seen cells, held-out cells and free text, and what kind each is."""
        out = []
        for split in ("train", "held_out_cells"):
            chosen = batches.spread(
                batches.indices(self.source, split), self.config.preview.pictures
            )
            out += [
                (pipeline.escape_prompt(self.source.records[i].captions[0]), split) for i in chosen
            ]
        out += [(prompt, "free text") for prompt in self.config.preview.prompts]
        return tuple(zip(*out))

    def finish(self) -> None:
        """The grid of pictures that a run ends with."""
        labels = {"train": "", "held_out_cells": "[held out] ", "free text": "[free text] "}
        for name in self.config.stages:
            if name in build.TOKEN_STAGES and self.first:
                prompts, kinds = self.prompts()
                images = pipeline.load(self.workdir, stage=name)(prompts, seed=self.config.seed)
                path = self.workdir / (
                    "samples.png" if name == "diffusion" else f"samples-{name}.png"
                )
                save_png(
                    path,
                    grid(
                        images, 8, captions=[labels[k] + p for p, k in zip(prompts, kinds)], scale=3
                    ),
                )
                print(f"pictures of seen cells, held-out cells and free text: {path}", flush=True)
        if self.config.adapter.rank and self.first:
            path = self.workdir / lora.FILE
            if not path.exists():  # it was moved away, or this workdir was trained without
                lora.write(
                    path,
                    lora.Adapter(**self.config.adapter),
                    Checkpoints(self._folder("diffusion"), read_only=True).restore("weights"),
                )
            print(
                f"the adapter, for --workdir={self.config.init_from}: {path}, "
                f"{path.stat().st_size / 1e6:.1f} MB",
                flush=True,
            )
        if self.first:
            page.refresh(self.workdir)
            print(f"all of it on one page: {self.workdir / page.NAME}", flush=True)
        distributed.barrier()

    def _begin(self, stage: str, params: Any) -> Any:
        """The network's first parameters: those of `init_from`, or fresh ones with CLIP's text
        tower.
        """
        if self.config.init_from:
            _, stored = pipeline.stored_model(self.config.init_from, stage)
            fresh = {"adapter": params["adapter"]} if "adapter" in params else {}
            return fit(
                {"conditioner": {}} | stored | fresh,
                params,
                f"the model in {self.config.init_from}",
            )
        if self.config.condition.kind == "text" and self.config.text.encoder == "clip":
            folder = self.config.clip_text.folder
            encoder = text_weights(
                read_clip(local_folder(folder)),
                params["conditioner"]["encoder"],
                f"the CLIP weights in {folder}",
            )
            return params | {"conditioner": params["conditioner"] | {"encoder": encoder}}
        return params

    def _origin(self, stage: str) -> Checkpoints:
        """The checkpoints of `init_from`."""
        return Checkpoints(stage_folder(self.config.init_from, stage), read_only=True)

    def _codec(self) -> Any:
        checkpoints = Checkpoints(self._folder("vqvae"), read_only=True)
        if checkpoints.latest_step() is None and self.config.init_from:
            origin = self._origin("vqvae")
            with Checkpoints(
                self._folder("vqvae"), keep=1
            ) as own:  # a workdir holds all that sampling needs
                own.save(
                    origin.latest_step(),
                    {name: origin.restore(name) for name in ("weights", "config")},
                    wait=True,
                )
        self._hand_out(checkpoints)
        if checkpoints.latest_step() is None:
            raise UserError(
                f"the diffusion stage needs a codec, and {checkpoints.folder} has none: run the "
                "vqvae stage first"
            )
        check_same_model("vqvae", checkpoints, self.config)
        return widen(checkpoints.restore("weights"))

    def _checkpoints(self, stage: str, train: loop.Train) -> Checkpoints:
        checkpoints = self._hand_out(
            Checkpoints(self._folder(stage), keep=train.keep, shared=self.shared)
        )
        check_same_model(stage, checkpoints, self.config)
        return checkpoints

    def _hand_out(self, checkpoints: Checkpoints) -> Checkpoints:
        """The checkpoints, of which every process has the latest."""
        distributed.barrier()
        distributed.broadcast_checkpoint(checkpoints.folder, checkpoints.steps(), self.keeper)
        return checkpoints

    def _folder(self, stage: str) -> Path:
        return stage_folder(self.workdir, stage)

    def _done(self, name: str, checkpoints: Checkpoints, train: loop.Train) -> bool:
        latest = checkpoints.latest_step()
        if (
            latest is not None
            and latest >= train.steps
            and not loop.unevaluated(train, checkpoints, self.output / name)
        ):
            print(f"{name}: all {train.steps} steps are done, in {checkpoints.folder}", flush=True)
            return True
        return False


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json())
