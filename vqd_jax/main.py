"""Trains: `python -m vqd_jax.main --config=configs/emoji.py [--workdir=DIR] [--config.section.key=value]`.

Runs the config's stages in order in the workdir; each resumes from its own checkpoint, runs, or is skipped as done. On several
machines the same command runs on each, with --coordinator=HOST:PORT --processes=N --process=I added, as launch/ does.
"""

import functools
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from vqd_jax import adapter, build, command, interrupt, pipeline, processes, rehearsal
from vqd_jax.checkpoint import Checkpoints, fit, widen
from vqd_jax.continuing import check_same_model, with_model_of
from vqd_jax.convert.clip import read_clip
from vqd_jax.convert.released import text_weights
from vqd_jax.errors import UserError
from vqd_jax.hub import local_folder
from vqd_jax.log import Log
from vqd_jax.pictures import grid, save_png
from vqd_jax.report import page
from vqd_jax.sharding import parallelism
from vqd_jax.text.load import load_tokenizer
from vqd_jax.train import loop, programs, stages
from vqd_jax.train.guard import Guard
from vqd_jax.train.optim import Optim
from vqd_jax.train.profile import Profile
from vqd_jax.train.tokens import cached_tokens, some_tokens
from vqd_jax.writing import clean

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/, with :variant if it has any.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written; runs/<config> by default.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "To train in several processes: HOST:PORT of the first one, or auto on a TPU pod.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")


class Experiment:
    """One workdir: its config, its data, and the stages that train in it."""

    def __init__(self, config: ConfigDict, workdir: Path):
        if config.init_from:
            here = pipeline.token_stage(workdir) and not Path(config.init_from).exists()  # a run that has begun no longer needs that folder
            config = with_model_of(workdir if here else config.init_from, config)
        if config.adapter.rank and not (config.init_from and config.stages == ("diffusion",)):
            raise UserError("an adapter changes a trained diffusion model: say which with --config.init_from=DIR")
        self.config, self.workdir = config, workdir
        self.keeper, self.first = processes.keeper(workdir), jax.process_index() == 0
        self.shared = processes.shared(self.keeper)
        self.scratch = None if self.first else tempfile.TemporaryDirectory()
        self.output = workdir if self.first else Path(self.scratch.name)  # of logs and pictures
        self.cache = Path(config.data.cache) if config.data.cache else workdir / "cache"
        self.parallel = parallelism(**config.parallel)
        self.key = jax.random.key(config.seed)
        print(f"workdir {workdir}, built data in {self.cache}", flush=True)
        self.source = build.source(config, self.cache)
        counts = {name: len(stages.indices(self.source, name)) for name in ("train", "held_out_cells", "held_out_items")}
        print("images: " + ", ".join(f"{n} {name}" for name, n in counts.items()), flush=True)
        self.transform = build.transform(config, training=True)
        self.resize = build.transform(config, training=False)
        self.common = dict(guard=Guard(**config.guard), profile=Profile(**config.profile), describe=lambda i: self.source.records[i].item,
                           report=lambda: page.refresh(workdir) if self.first else None)
        self.loading = dict(seed=config.seed, process_index=jax.process_index(), process_count=jax.process_count())

    def check(self) -> None:
        """Builds what every stage is made of, so that a wrong value ends the run now and not after hours in another stage."""
        config = self.config
        for name in config.stages:
            rehearsed = rehearsal.rehearse(config, name)
            self.parallel.check_batch(rehearsed.train.batch_size, rehearsed.train.accumulate)
        over_tokens = set(config.stages) & set(build.TOKEN_STAGES)
        if over_tokens and config.condition.kind == "text" and config.text.encoder == "clip" and not config.init_from:
            build.tokenizer(config, [])  # from its file
        if "diffusion" in config.stages:
            build.sampling(config, **config.sampling)

    def run(self) -> None:
        self.check()
        for i, name in enumerate(self.config.stages):
            stage = self.vqvae if name == "vqvae" else functools.partial(self.over_tokens, name)
            started = time.perf_counter()
            stage(jax.random.fold_in(self.key, i))
            processes.wait()  # until what was saved is there
            print(f"{name} done ({time.perf_counter() - started:.0f} s)", flush=True)

    def vqvae(self, key: Any) -> None:
        config, stage = self.config, build.vqvae_stage(self.config)
        train = loop.Train(**config.vqvae_train)
        with self._checkpoints("vqvae", train) as checkpoints:
            if self._done("vqvae", checkpoints, train):
                return
            loader = stages.image_loader(self.source, self.transform, batch_size=train.batch_size, **self.loading)
            frozen, folder = stage.frozen(), self.output / "vqvae"
            evaluate = stages.CodecEvaluation(stage=stage, source=self.source, transform=self.resize, folder=folder,
                                              lpips=("vgg",) * config.held_out.lpips, examples=config.held_out.examples)
            loop.run("vqvae", stage, train=train, optim=Optim(**config.vqvae_optim), loader=loader, parallel=self.parallel,
                checkpoints=checkpoints, log=Log(folder), key=key, frozen=frozen, items={"config": _plain(config)},
                evaluate=evaluate, look=lambda: self._hand_out(checkpoints), **self.common)

    def over_tokens(self, name: str, key: Any) -> None:
        """The diffusion stage, or its autoregressive twin."""
        config, train = self.config, loop.Train(**self.config.diffusion_train)
        codec = self._codec()
        with self._checkpoints(name, train) as checkpoints:
            if self._done(name, checkpoints, train):
                return
            stored = checkpoints if checkpoints.has("tokenizer") else self._origin(name) if config.init_from else None
            if stored:
                tokenizer = load_tokenizer(stored.restore("tokenizer"))
            else:
                tokenizer = build.tokenizer(config, [self.source.records[i] for i in stages.indices(self.source, "train")])
            stage, folder = build.TOKEN_STAGES[name](config, tokenizer), self.output / name
            encode = lambda images: programs.encode(stage.codec, codec, images)
            source = stages.Squares(self.source, self.resize)
            online = build.online(config)
            examined = stages.examined(source, config.held_out.examples)
            tokens = (some_tokens(source, itertools.chain(*examined.values()), encode) if online
                      else cached_tokens(self.cache, source, codec, encode))
            loader = stages.pair_loader(self.source, None if online else tokens, self.transform, tokenizer,
                                        drop_words=config.data.drop_words, batch_size=train.batch_size, **self.loading)
            prompts, _ = self.prompts()
            bound = stages.Bound(stage=stage, source=source, tokens=tokens, tokenizer=tokenizer, draws=config.held_out.draws)
            sampler, prediction = build.sampling(config, **dict(config.sampling) | pipeline.own_sampling(stage))
            evaluate = stages.TokenEvaluation(bound=bound, codec=codec, folder=folder, examples=config.held_out.examples,
                                                  prompts=prompts, sampler=sampler, prediction=prediction)

            def keep_and_evaluate(step: int, weights: Any) -> dict[str, float]:
                adapter.write(self.output / adapter.FILE, stage.adapter, weights)
                return evaluate(step, weights)

            loop.run(name, stage, train=train, optim=Optim(**config.diffusion_optim), loader=loader, parallel=self.parallel,
                checkpoints=checkpoints, log=Log(folder), key=key, frozen=codec if online else {},
                evaluate=keep_and_evaluate if config.adapter.rank else evaluate,
                items={"config": _plain(config), "tokenizer": tokenizer.to_json()}, begin=functools.partial(self._begin, name),
                look=lambda: self._hand_out(checkpoints), **self.common)

    def prompts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Prompts of seen cells, held-out cells and free text, and what kind each is."""
        out = []
        for split in ("train", "held_out_cells"):
            chosen = stages.spread(stages.indices(self.source, split), self.config.preview.pictures)
            out += [(pipeline.literal(self.source.records[i].captions[0]), split) for i in chosen]
        out += [(prompt, "free text") for prompt in self.config.preview.prompts]
        return tuple(zip(*out))

    def finish(self) -> None:
        """The grid of pictures that a run ends with."""
        labels = {"train": "", "held_out_cells": "[held out] ", "free text": "[free text] "}
        for name in self.config.stages:
            if name in build.TOKEN_STAGES and self.first:
                prompts, kinds = self.prompts()
                images = pipeline.load(self.workdir, stage=name)(prompts, seed=self.config.seed)
                path = self.workdir / ("samples.png" if name == "diffusion" else f"samples-{name}.png")
                save_png(path, grid(images, 8, captions=[labels[k] + p for p, k in zip(prompts, kinds)], scale=3))
                print(f"pictures of seen cells, held-out cells and free text: {path}", flush=True)
        if self.config.adapter.rank and self.first:
            path = self.workdir / adapter.FILE
            if not path.exists():  # it was moved away, or this workdir was trained without
                adapter.write(path, adapter.Adapter(**self.config.adapter),
                              Checkpoints(self._folder("diffusion"), read_only=True).restore("weights"))
            print(f"the adapter, for --workdir={self.config.init_from}: {path}, {path.stat().st_size / 1e6:.1f} MB", flush=True)
        if self.first:
            page.refresh(self.workdir)
            print(f"all of it on one page: {self.workdir / page.NAME}", flush=True)
        processes.wait()

    def _begin(self, stage: str, params: Any) -> Any:
        """The network's first parameters: those of `init_from`, or fresh ones with CLIP's text tower."""
        if self.config.init_from:
            _, stored = pipeline.stored_model(self.config.init_from, stage)
            fresh = {"adapter": params["adapter"]} if "adapter" in params else {}
            return fit({"conditioner": {}} | stored | fresh, params, f"the model in {self.config.init_from}")
        if self.config.condition.kind == "text" and self.config.text.encoder == "clip":
            folder = self.config.clip_text.folder
            encoder = text_weights(read_clip(local_folder(folder)), params["conditioner"]["encoder"], f"the CLIP weights in {folder}")
            return params | {"conditioner": params["conditioner"] | {"encoder": encoder}}
        return params

    def _origin(self, stage: str) -> Checkpoints:
        """The checkpoints of `init_from`."""
        return Checkpoints(pipeline.stage_folder(self.config.init_from, stage), read_only=True)

    def _codec(self) -> Any:
        checkpoints = Checkpoints(self._folder("vqvae"), read_only=True)
        if checkpoints.latest_step() is None and self.config.init_from:
            origin = self._origin("vqvae")
            with Checkpoints(self._folder("vqvae"), keep=1) as own:  # a workdir holds all that sampling needs
                own.save(origin.latest_step(), {name: origin.restore(name) for name in ("weights", "config")}, wait=True)
        self._hand_out(checkpoints)
        if checkpoints.latest_step() is None:
            raise UserError(f"the diffusion stage needs a codec, and {checkpoints.folder} has none: run the vqvae stage first")
        check_same_model("vqvae", checkpoints, self.config)
        return widen(checkpoints.restore("weights"))

    def _checkpoints(self, stage: str, train: loop.Train) -> Checkpoints:
        checkpoints = self._hand_out(Checkpoints(self._folder(stage), keep=train.keep, shared=self.shared))
        check_same_model(stage, checkpoints, self.config)
        return checkpoints

    def _hand_out(self, checkpoints: Checkpoints) -> Checkpoints:
        """The checkpoints, of which every process has the latest."""
        processes.wait()
        processes.hand_out(checkpoints.folder, checkpoints.steps(), self.keeper)
        return checkpoints

    def _folder(self, stage: str) -> Path:
        return pipeline.stage_folder(self.workdir, stage)

    def _done(self, name: str, checkpoints: Checkpoints, train: loop.Train) -> bool:
        latest = checkpoints.latest_step()
        if latest is not None and latest >= train.steps and not loop.unevaluated(train, checkpoints, self.output / name):
            print(f"{name}: all {train.steps} steps are done, in {checkpoints.folder}", flush=True)
            return True
        return False


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json())


def main(argv: Any) -> None:
    flag = flags.FLAGS["config"]
    workdir = command.workdir(config_flags.get_config_filename(flag) if flag.present else "", _WORKDIR.value)
    processes.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    pipeline.compilation_cache()
    lock = None if jax.process_index() else processes.lock(workdir)
    for folder in (workdir, *(workdir / name for name in ("vqvae", *build.TOKEN_STAGES))) if lock else ():
        clean(folder)
    experiment = Experiment(_CONFIG.value, workdir)
    experiment.run()
    experiment.finish()
    if lock:
        lock.close()


def run() -> None:
    interrupt.listen()
    with processes.ending_at_once():
        command.run(main, again="goes on from the last checkpoint")


if __name__ == "__main__":
    run()
