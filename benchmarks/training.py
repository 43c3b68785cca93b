"""Images per second of a training step, side by side with PyTorch: diffusers' Transformer2DModel
and the published loss, as pip installs it and at its best (turns.py).

  pip install torch==2.13.0 diffusers==0.30.3      (into an environment that has vqd_jax)
  apt-get install gcc g++ libjemalloc2             (for what makes PyTorch faster)
  python benchmarks/training.py --out=results/training.json
  python benchmarks/training.py --device=gpu --sizes=base --batches 32 64      (elsewhere)

On a GPU torch needs CUDA; without torch ours is measured alone.

Both do a whole step: draw times by importance, noise the tokens, the network, the loss and its
gradient, clipping, AdamW and the average of the weights. Ours is the step that `vqd_jax.main`
compiles, with the config's defaults; the peer's loss is the published one, dense over all k + 1
states. Text states are given on both sides, in place of a frozen tower. Weights, tokens and texts
are the same, and with the same times and noise the losses and the gradients are compared before
anything is timed. `network` is the forward and backward pass of the network alone. All take turns,
so that a noisy machine slows each; ratios are of rounds.
"""

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peer
import turns

from vqd_jax.core.pace import Pace
from vqd_jax.runtime.parallel import parallelism
from vqd_jax.runtime.rows import Rows
from vqd_jax.stages.diffusion import DiffusionStage
from vqd_jax.train.cost.flops import of_step
from vqd_jax.train.loop import Train
from vqd_jax.train.optim import Optim
from vqd_jax.train.state import State
from vqd_jax.train.step import default_micro_batches, make_step

BATCHES = {"S": 4, "small": 32, "base": 32}
TARGET = 200  # images per second of one H100 at base
STATES = np.random.default_rng(5).normal(size=(peer.Tokenizer.vocabulary, 512)).astype(np.float32)


class Given(nn.Module):
    """The text states of ids, where the tower would be."""

    def __call__(self, ids):
        return jnp.asarray(STATES)[ids], jnp.ones(ids.shape, bool)


@dataclasses.dataclass(frozen=True)
class Case:
    """A size with its weights, its config's optimizer and a batch."""

    size: str
    config: Any
    stage: DiffusionStage
    params: Any
    batch: dict[str, np.ndarray]

    @classmethod
    def make(
        cls, size: str, rows: int, remat: str = "none", scan: bool = False, dtype: str = ""
    ) -> "Case":
        c = peer.config(size)
        c.denoiser.remat, c.denoiser.scan = remat, scan
        c.denoiser.dtype = dtype or c.denoiser.dtype
        stage, params = peer.ours(c, Given())
        rng, n = np.random.default_rng(1), int(np.prod(stage.denoiser.grid))
        batch = {
            "tokens": rng.integers(0, stage.process.k, (rows, n)).astype(np.int32),
            "text": rng.integers(0, len(STATES), (rows, 77)).astype(np.int32),
        }
        return cls(size, c, stage, params, batch)

    @property
    def flops(self) -> int:
        return of_step(
            self.stage, None, jax.tree.map(lambda x: x[0], self.batch), len(self.batch["text"])
        )


def mine(case: Case) -> Callable[[], Any]:
    """A call makes a step, as `vqd_jax.main` does."""
    c, rows, parallel = case.config, len(case.batch["text"]), parallelism(devices=1)
    train = Train(**c.diffusion_train)
    optimizer = Optim(**c.diffusion_optim).build(
        train.examples, Pace(rows), case.stage.unchanged, case.stage.dtype
    )
    step = parallel.compile(
        make_step(
            case.stage,
            optimizer,
            train.ema,
            train.accumulate or default_micro_batches(rows, case.stage.positions),
        )
    )
    extra = case.stage.from_weights(case.params)[1]
    state = parallel.device_put(
        State(
            step=np.int32(0),
            params=case.params,
            ema=case.params,
            opt_state=optimizer.init(case.params),
            extra=extra,
        )
    )
    batch, frozen, held = parallel.shard(case.batch), parallel.device_put({}), {"state": state}

    def one():
        held["state"], metrics = step(held["state"], frozen, batch, jax.random.key(0))
        return metrics

    return one


def forward_and_backward(case: Case) -> Callable[[], Any]:
    """A call is a pass of the network there and back, with a gradient of ones."""
    text, mask = Given()(case.batch["text"])
    z, t = jnp.asarray(case.batch["tokens"]), jnp.full(len(text), 50)
    loss = lambda p: case.stage.denoiser.apply({"params": p}, z, t, text, mask).sum()
    program, params = jax.jit(jax.grad(loss)), jax.tree.map(jnp.asarray, case.params["denoiser"])
    return lambda: program(params)


class Torch:
    """The peer: the network of diffusers, a learned null, the published loss, and what a step does
    with the gradient.
    """

    def __init__(self, case: Case, device: str, options: frozenset[str]):
        """`options` are those of turns.py; on a GPU it computes in bfloat16 anyway."""
        import torch

        self.torch, self.case, self.device = torch, case, device
        self.half = device != "cpu" or "bfloat16" in options
        rows = len(case.batch["text"])
        self.parts = default_micro_batches(rows, case.stage.positions) if "parts" in options else 1
        from diffusers.models.normalization import AdaLayerNorm

        def times_of_rows(norm, x, timestep):  # that of diffusers takes one for all
            scale, shift = norm.linear(norm.silu(norm.emb(timestep)))[:, None].chunk(2, -1)
            return norm.norm(x) * (1 + scale) + shift

        AdaLayerNorm.forward = times_of_rows
        network = peer.network(case.size, case.params).to(device).train()
        self.null = torch.nn.Parameter(self.tensor(case.params["conditioner"]["null"]))
        self.weights = [*network.parameters(), self.null]
        compiled = torch.compile if "compile" in options else lambda f: f
        self.network = compiled(network)
        self.names = [name for name, _ in network.named_parameters()]
        self.average = copy.deepcopy([x.detach() for x in self.weights])
        c = case.config
        self.clip, self.decay = c.diffusion_optim.clip, c.diffusion_train.ema
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=c.diffusion_optim.learning_rate,
            betas=tuple(c.diffusion_optim.betas),
            weight_decay=c.diffusion_optim.weight_decay,
            fused=True,
        )
        self.published = Published(
            torch, case.stage.process.k, case.stage.process.T, c.diffusion_loss.auxiliary, device
        )
        self.loss = compiled(self.published.loss)
        self.noised = compiled(self.published.noised)
        self.blocks = compiled(functools.partial(blocks, network))
        self.states, self.tokens, self.text = (
            self.tensor(x)
            for x in (
                STATES,
                case.batch["tokens"].astype(np.int64),
                case.batch["text"].astype(np.int64),
            )
        )
        self.square, self.count = (
            torch.zeros(case.stage.process.T, device=device) for _ in range(2)
        )

    def tensor(self, x):
        return self.torch.from_numpy(np.array(x)).to(self.device)

    def log_p(self, z, t, drop, text):
        """log p(x_0) (b, k, n) of the network; t as in the released code, from 0."""
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.half):
            text = self.torch.where(drop[:, None, None], self.null, self.states[text])
            return self.network(z, encoder_hidden_states=text, timestep=t).sample

    def gradient(self, z, t, drop, p):
        """(loss, the bound of each row), and the gradient in the weights."""
        self.optimizer.zero_grad()
        losses, bounds = [], []
        for part in zip(*(x.chunk(self.parts) for x in (z, t, drop, p, self.tokens, self.text))):
            z_part, t_part, drop_part, p_part, tokens, text = part
            log_p = self.log_p(z_part, t_part, drop_part, text)
            loss, bound = self.loss(log_p, tokens, z_part, t_part, p_part)
            (loss / self.parts).backward()
            losses.append(loss.detach() / self.parts)
            bounds.append(bound)
        return sum(losses), self.torch.cat(bounds)

    def probabilities(self):
        if self.count.min() <= 10:
            return self.torch.full_like(self.square, 1 / len(self.square))
        weight = (self.square + 1e-10).sqrt() + 1e-4
        weight[0] = weight[1]
        return weight / weight.sum()

    def step(self):
        torch = self.torch
        p, rows = self.probabilities(), len(self.tokens)
        t = torch.multinomial(p, rows, replacement=True)
        drop = torch.rand(rows, device=self.device) < self.case.config.diffusion_loss.drop_caption
        loss, bound = self.gradient(self.noised(self.tokens, t), t, drop, p[t])
        torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - self.decay)
            self.square[t] = 0.1 * bound**2 + 0.9 * self.square[t]
            self.count += torch.bincount(t, minlength=len(self.count))
        return float(loss)

    def forward_and_backward(self):
        """What `forward_and_backward` is of ours: without the normalisation in float64 that
        diffusers does at the end.
        """
        torch, ones = self.torch, 0.0
        self.optimizer.zero_grad()
        for tokens, text in zip(*(x.chunk(self.parts) for x in (self.tokens, self.text))):
            with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
                t = torch.full((len(text),), 49, device=self.device)
                logits = self.blocks(tokens, self.states[text], t)
            logits.sum().backward()
            ones += float(logits.flatten()[0].detach())
        return ones


def blocks(network, tokens, text, t):
    """Logits of a Transformer2DModel."""
    x = network.latent_image_embedding(tokens)
    for block in network.transformer_blocks:
        x = block(x, encoder_hidden_states=text, timestep=t)
    return network.out(network.norm_out(x))


class Published:
    """The loss of the released code, for log-probabilities (b, k, n); times from 0, states (b, k +
    1, n) as logs, clamped to [-70, 0].
    """

    def __init__(self, torch, k: int, T: int, auxiliary: float, device: str):
        self.torch, self.k, self.T, self.auxiliary = torch, k, T, auxiliary
        rise = np.arange(T) / (T - 1)
        keep, mask = 0.99999 + rise * (9e-6 - 0.99999), 9e-6 + rise * (0.99999 - 9e-6)
        keep, mask = np.concatenate([[1], keep]), np.concatenate([[0], mask])  # of 0, 1 … T steps
        one_keep, one_mask = keep[1:] / keep[:-1], 1 - (1 - mask[1:]) / (1 - mask[:-1])
        self.one, self.whole = (
            self.table(*x, device)
            for x in ((one_keep, one_mask), (np.append(keep[1:], 1), np.append(mask[1:], 0)))
        )

    def table(self, keep, mask, device):
        """Logs of: kept, replaced by one of k, masked, not masked."""
        with np.errstate(divide="ignore"):
            rows = np.log(np.stack([keep, np.maximum(1 - keep - mask, 0) / self.k, mask, 1 - mask]))
        return self.torch.from_numpy(rows.astype(np.float32)).to(device)

    def states(self, z):
        """Tokens as log-probabilities."""
        return (
            self.torch.nn.functional.one_hot(z, self.k + 1)
            .swapaxes(1, 2)
            .float()
            .clamp(min=1e-30)
            .log()
        )

    def forward(self, log_x, table, t):
        """log q(x_t) from log q(x_0), or of one step."""
        keep, replace, mask, live = (table[i][t][:, None, None] for i in range(4))
        return self.torch.cat(
            [
                self.torch.logaddexp(log_x[:, :-1] + keep, replace.expand_as(log_x[:, :-1])),
                self.torch.logaddexp(log_x[:, -1:] + live, mask.expand_as(log_x[:, -1:])),
            ],
            1,
        )

    def noised(self, z, t):
        log_p = self.forward(self.states(z), self.whole, t)
        return (log_p - (-(self.torch.rand_like(log_p) + 1e-30).log() + 1e-30).log()).argmax(1)

    def posterior(self, log_p, z, t):
        """log p(x_{t-1} | x_t = z) from log p(x_0) (b, k + 1, n)."""
        torch, masked = self.torch, (z == self.k)[:, None]
        states, bottom = self.states(z), torch.full_like(log_p[:, -1:], np.log(1e-30))
        mask = lambda table: table[2][t][:, None, None]
        to_z = torch.where(masked, mask(self.whole), self.forward(states, self.whole, t)[:, :-1])
        step = torch.cat(
            [
                torch.where(masked, mask(self.one), self.forward(states, self.one, t)[:, :-1]),
                torch.where(masked, torch.zeros_like(bottom), bottom),
            ],
            1,
        )
        x = torch.cat([log_p[:, :-1] - to_z, bottom], 1)
        norm = x.logsumexp(1, keepdim=True)
        return (self.forward(x - norm, self.whole, (t - 1) % (self.T + 1)) + step + norm).clamp(
            -70, 0
        )

    def loss(self, log_p, x, z, t, p):
        """(loss, the bound of each row): `x` clean and `z` noised tokens at times t, drawn with
        probabilities p.
        """
        torch = self.torch
        log_p = torch.cat([log_p, torch.full_like(log_p[:, :1], -70)], 1).clamp(-70, 0)
        clean, model = self.states(x), self.posterior(log_p, z, t)
        with torch.no_grad():
            true = self.posterior(clean, z, t)
        kl = (true.exp() * (true - model)).sum((1, 2))
        decoded = -(clean.exp() * model).sum((1, 2))
        auxiliary = (clean[:, :-1].exp() * (clean[:, :-1] - log_p[:, :-1])).sum((1, 2))
        bound, auxiliary = torch.where(t == 0, decoded, kl), torch.where(t == 0, decoded, auxiliary)
        loss = (bound + (2 - t / self.T) * self.auxiliary * auxiliary) / p
        return loss.sum() / x.numel(), bound.detach()


def agreement(case: Case, theirs: Torch) -> dict[str, float]:
    """With the same times, noise and dropped captions: both losses, and by how much gradients
    differ, as a share of their norm.

    In float32 the losses must be equal to 1e-4, or nothing is timed.
    """
    stage, rows = case.stage, Rows.of_device(len(case.batch["text"]))
    key, (params, extra) = jax.random.key(3), stage.from_weights(case.params)
    gradient = jax.jit(
        lambda p: jax.value_and_grad(stage.loss, has_aux=True)(
            p, extra, None, case.batch, key, 0, rows
        )
    )
    (loss, (seen, _)), grads = gradient(params)
    each = lambda i: jax.vmap(lambda k: jax.random.fold_in(k, i))(
        rows.keys(key)
    )  # as the stage draws
    z = stage.diffuse(each(1), case.batch["tokens"], seen["t"])
    drop = jax.vmap(lambda k: jax.random.bernoulli(k, stage.weights.drop_caption))(each(2))
    t = theirs.tensor(seen["t"]).long() - 1
    other, bound = theirs.gradient(
        theirs.tensor(z).long(),
        t,
        theirs.tensor(drop),
        theirs.torch.full(t.shape, 0.01, device=t.device),
    )
    want = {name: w.grad.cpu().numpy() for name, w in zip(theirs.names, theirs.weights)} | {
        "null": theirs.null.grad.cpu().numpy()
    }
    got = peer.to_diffusers(grads["denoiser"], stage.denoiser.layers) | {
        "null": np.asarray(grads["conditioner"]["null"])
    }
    norm = lambda tree: float(
        np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in tree.values()))
    )
    apart = norm({name: got[name] - want[name] for name in want}) / norm(want)
    if not theirs.half and abs(float(other) / float(loss) - 1) > 1e-4:
        raise SystemExit(
            f"error: the losses differ: {float(loss)} here, {float(other)} of the peer"
        )
    return {
        "loss": float(loss),
        "loss_of_peer": float(other),
        "relative_difference_of_gradients": apart,
    }


PARTS = {"step": (mine, "step"), "network": (forward_and_backward, "forward_and_backward")}


def measure(
    case: Case,
    parts: list[str],
    rounds: int,
    peak: float,
    *,
    options: Sequence[str] = (),
    python: str = sys.executable,
    halves: Case | None = None,
) -> dict[str, Any]:
    """A row of results: the step and the network alone, ours and, where it is there, the peer's,
    with the `options` that make it faster. `halves` is the case in bfloat16, to be timed as well.
    """
    rows = len(case.batch["text"])
    row = {
        "size": case.size,
        "batch": rows,
        "dtype": jnp.dtype(case.stage.denoiser.dtype).name,
        "flops": case.flops,
        "measured_peak": peak,
    }
    for part in parts:
        ours, _ = PARTS[part]
        cases = {"vqd_jax": case} | ({"vqd_jax in bfloat16": halves} if halves else {})
        sides = {name: functools.partial(turns.timed, ours(one)) for name, one in cases.items()}
        device = "cuda" if peer.on_gpu() else "cpu"
        told = {"size": case.size, "batch": rows, "part": part, "device": device}
        with turns.contest([python, __file__], told, options) as contest:
            row[part] = {
                "tried": contest.tried,
                "peers": contest.settings,
                "sides": turns.compare(sides | contest.peers, rows, case.flops, peak, rounds),
            }
        print(
            f"{case.size:6} batch {rows}: {part}\n{turns.summary(row[part]['sides'])}", flush=True
        )
    return row


def serve(size: str, batch: int, part: str, device: str, options: list[str]) -> None:
    """Steps of the peer, for `turns.Peer`, after a look at its numbers."""
    case = Case.make(size, batch)
    theirs = Torch(case, device, frozenset(options))
    turns.serve(getattr(theirs, PARTS[part][1]), agreement=agreement(case, theirs))


def main() -> None:
    parser = turns.options(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/training.json"))
    parser.add_argument(
        "--batches", nargs="*", type=int, help="4 at S, 32 at the others by default"
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument(
        "--remat",
        default="none",
        choices=("none", "products", "full"),
        help="denoiser.remat of ours; the config of base has products",
    )
    parser.add_argument("--bfloat16", action="store_true", help="time ours in bfloat16, too")
    args = parser.parse_args()
    peer.start(args.device)
    if args.peer:
        return serve(**args.peer)
    peak, rows = peer.measured_peak(), []
    print(
        f"{jax.devices()[0].device_kind}: products of matrices at {peak / 1e9:.0f} GFLOP/s",
        flush=True,
    )
    for size in args.sizes:
        for batch in args.batches or [BATCHES[size]]:
            case = Case.make(size, batch, args.remat)
            halves = Case.make(size, batch, args.remat, dtype="bfloat16") if args.bfloat16 else None
            rows.append(
                measure(
                    case,
                    args.parts,
                    args.rounds,
                    peak,
                    options=args.options,
                    python=args.peer_python,
                    halves=halves,
                )
            )
            peer.write(args.out, "training", rows)
    print(args.out)


if __name__ == "__main__":
    main()
