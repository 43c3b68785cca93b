"""Likelihood of masked tokens and repair of wrong ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.workdirs import make_workdir
from vqd_jax.core.errors import UserError
from vqd_jax.data.batches import Resized
from vqd_jax.data.source import Record
from vqd_jax.data.transforms import Resize
from vqd_jax.eval import token_measures
from vqd_jax.eval.evaluation import Evaluation
from vqd_jax.eval.evaluator import PRIMARY, Evaluator
from vqd_jax.eval.features import Extractor
from vqd_jax.eval.generate import compute_batches
from vqd_jax.eval.protocols import PROTOCOLS
from vqd_jax.inference import pipeline
from vqd_jax.stages import sampling

COUNT, K, N = 24, 20, 16


class Noise:
    """Images of noise, held out as pairs of two styles."""

    fingerprint, skipped = "noise", {}
    records = [
        Record(
            item=str(i),
            captions=(f"a picture of {i}",),
            style="ab"[i % 2],
            split="held_out_cells" if i < 16 else "train",
        )
        for i in range(COUNT)
    ]

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return self.records[i].example(pixels)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    changes = {"process.schedule": "absorbing", "denoiser.layers": 1, "sampling.calls": 8}
    return pipeline.load(make_workdir(tmp_path_factory.mktemp("model"), changes))


def evaluation(model, cache, **changes):
    flat = lambda params, x: x.astype(jnp.float32).reshape(x.shape[0], -1) / 255
    network = Extractor(name="flat", params={}, embed=flat)
    protocol = dataclasses.replace(PROTOCOLS["emoji64"], subsets=3, **changes)
    how = Evaluation(
        model=model,
        evaluator=Evaluator(protocol=protocol, networks={PRIMARY: network, "retrieval": network}),
        cache=cache,
        settings={"calls": 8},
    )
    vars(how)["source"] = Resized(Noise(), Resize(size=16))
    return how


def test_bits_of_masked_tokens_equal_those_of_the_network(model, tmp_path):
    how = evaluation(model, tmp_path, images=3)
    got = token_measures.masked_bits(how)
    assert got.keys() == {"train", "held_out_cells/test"}
    records = [16, 19, 23]
    tokens, process = how.tokens(records), model.process
    values = []
    predict = jax.jit(
        lambda z, t, ids: model.stage.predict(model.weights, z, t, ids, jnp.zeros(3, bool))
    )
    ids = jnp.concatenate([model.tokenizer(Noise.records[i].captions) for i in records])
    real = np.stack([tokens[i] for i in records])
    masked_in_turn = np.stack([np.random.default_rng((0, i)).permutation(N) for i in records])
    for share in token_measures.MASK_SHARES:
        masked = masked_in_turn < max(1, round(share * N))
        time = min(range(1, process.T + 1), key=lambda t: abs(1 - process.unmasked[t] - share))
        logits = predict(jnp.array(np.where(masked, K, real)), jnp.full(3, time), ids)
        logits = np.asarray(logits, np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nats = -np.take_along_axis(log_p, real[..., None], -1)[..., 0]
        each = [row[hidden].mean() / np.log(2) for row, hidden in zip(nats, masked)]
        row = got["train"]["by_share"][str(share)]
        assert row["bits_per_token"] == pytest.approx(np.mean(each), rel=1e-4)
        values.append(each)
    assert got["train"]["bits_per_token"] == pytest.approx(np.mean(values), rel=1e-4)
    low, high = got["train"]["bits_per_token_interval"]
    assert low < got["train"]["bits_per_token"] < high and got["train"]["images"] == 3


def test_a_network_that_knows_nothing_has_log_k(model, tmp_path):
    weights = jax.tree.map(lambda x: x, model.weights)
    weights["denoiser"]["head"] = jax.tree.map(jnp.zeros_like, weights["denoiser"]["head"])
    got = token_measures.masked_bits(
        evaluation(dataclasses.replace(model, weights=weights), tmp_path, images=4)
    )
    for row in got.values():
        assert row["bits_per_token"] == pytest.approx(np.log2(K), rel=1e-5)


def test_wrong_tokens_are_other_codes_all_equally_likely():
    tokens = np.random.default_rng(0).integers(0, 5, (4000, 10)).astype(np.int32)
    z, replaced = token_measures.corrupted(tokens, 0.2, 5, seed=3)
    assert (replaced.sum(1) == 2).all()
    assert ((z != tokens) == (replaced == 1)).all()
    offsets = np.bincount(((z - tokens) % 5)[replaced == 1], minlength=5)
    assert offsets[0] == 0 and np.abs(offsets[1:] - 2000).max() < 5 * np.sqrt(1500)
    assert np.abs(replaced.mean(0) - 0.2).max() < 5 * np.sqrt(0.16 / 4000)  # at any position


def test_shares_of_restored_and_changed_tokens():
    tokens = np.array([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    replaced = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 1, 0]])
    result = np.array([[0, 9, 2, 9, 4], [9, 1, 9, 3, 4]])
    got = token_measures.restored(result, tokens, replaced)
    assert (got["restored"], got["changed"]) == (0.75, pytest.approx((1 / 3 + 2 / 4) / 2))


def test_the_last_calls_go_on_from_a_state(model, tmp_path):
    """From a state of a whole run, they end as that run, bit for bit."""
    how = evaluation(model, tmp_path)
    sampler, guidance, window = token_measures.last_calls(how, "ancestral")
    assert window == (6, 8)
    conditions, scales = model.conditions(["a picture of 3"] * 4, "", guidance)
    arguments = dict(seed=1, sampler=sampler, guidance_config=guidance)
    states = [*sampling.watch(model.stage, model.weights, conditions, scales, **arguments)]
    sample = lambda **window: sampling.sample(
        model.stage, model.weights, conditions, scales, **arguments, **window
    )
    np.testing.assert_array_equal(sample(window=window, z=states[5]), states[-1])
    np.testing.assert_array_equal(sample(), states[-1])
    polished, _, last = token_measures.last_calls(how, "counts")
    assert polished.polish == 2 and last == (6, 8)


@pytest.mark.parametrize("kind", ["oracle", "idle"])
def test_repair(model, tmp_path, monkeypatch, kind):
    """By sampling that knows the tokens, and by one that changes nothing."""
    how = evaluation(model, tmp_path, images=8)
    records = how.half_of("held_out_cells")
    tokens = np.stack([how.tokens(records)[i] for i in records])
    calls = []

    def sample(stage, weights, conditions, scales, *, first, window, z, sampler, **others):
        calls.append((type(sampler).__name__, first, window))
        rows = np.minimum(np.arange(first, first + len(z)), len(records) - 1)
        return tokens[rows] if kind == "oracle" else z

    monkeypatch.setattr(token_measures.sampling, "sample", sample)
    got = token_measures.repair(how, tmp_path / "repair", 3)
    share = float(kind == "oracle")
    assert got["images"] == len(records) and {w for _, _, w in calls} == {(6, 8)}
    for wrong in ("5%", "10%", "20%"):
        assert got[wrong].keys() == {"before", *token_measures.SAMPLERS}
        for name in token_measures.SAMPLERS:
            row = got[wrong][name]
            assert (row["restored"], row["changed"], row["calls"]) == (share, 0.0, 2)
            like = got["ceiling"] if kind == "oracle" else got[wrong]["before"]
            assert row["vgg_kid"] == pytest.approx(like["vgg_kid"])
        assert got[wrong]["before"]["vgg_kid"] != got["ceiling"]["vgg_kid"]
    before = len(calls)
    assert token_measures.repair(how, tmp_path / "repair", 3) == got and len(calls) == before


def test_batches_that_were_computed_are_kept(tmp_path):
    calls = []

    def compute(first, end):
        calls.append(first)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.arange(first, end)[:, None]

    run = lambda **changes: compute_batches(
        tmp_path / "rows", {"seed": 1} | changes, 5, 2, compute, "rows"
    )
    with pytest.raises(KeyboardInterrupt):
        run()
    np.testing.assert_array_equal(run(), np.arange(5)[:, None])
    assert calls == [0, 2, 2, 4]
    with pytest.raises(UserError, match="have another seed"):
        run(seed=2)
