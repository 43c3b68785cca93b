"""Evaluation of models by a protocol: prompts, real images, measures; a folder of the same images gets
the same numbers.
"""

import collections
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from helpers.commands import run_in_process
from helpers.workdirs import make_workdir
from vqd_jax.core.errors import UserError
from vqd_jax.data.image_folder import ImageFolder
from vqd_jax.eval import run
from vqd_jax.eval.collect import Collected
from vqd_jax.eval.evaluation import Evaluation, RecordImages
from vqd_jax.eval.evaluator import PRIMARY, Evaluator, without_model
from vqd_jax.eval.features import Extractor
from vqd_jax.eval.frechet import Moments
from vqd_jax.eval.measures import frechet_measure
from vqd_jax.eval.protocols import PROTOCOLS, Protocol
from vqd_jax.eval.scores import inception_score
from vqd_jax.inference import pipeline


def network(width=6):
    """A stub network whose features differ between images, with InceptionV3's last layer."""
    rng = np.random.default_rng(5)
    params = {
        "mix": rng.normal(size=(768, width)).astype(np.float32),
        "fc": {"kernel": rng.normal(size=(width, 5)).astype(np.float32)},
    }
    flat = lambda x: x.astype(jnp.float32).reshape(x.shape[0], -1)
    return Extractor(
        name="mixed",
        params=params,
        batch=64,
        embed=lambda p, x: jnp.tanh(flat(x) / 2550 @ p["mix"]),
    )


def photographs(root):
    """Captioned images in the layout of MS-COCO: 6 for training, 5 held out, three captions each."""
    for part, count, first in (("train2014", 6, 0), ("val2014", 5, 100)):
        (root / part).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        names = [f"COCO_{part}_{first + i:012d}.png" for i in range(count)]
        for i, name in enumerate(names):
            pixels = np.random.default_rng(first + i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((20, 18)).save(root / part / name)
        table = {
            "images": [{"id": first + i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [
                {
                    "id": 10 * (first + i) + j,
                    "image_id": first + i,
                    "caption": f"photograph {first + i} wording {j}",
                }
                for i in range(count)
                for j in range(3)
            ],
        }
        (root / "annotations" / f"captions_{part}.json").write_text(json.dumps(table))
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models by condition: text, class, none."""
    root = photographs(tmp_path_factory.mktemp("coco"))
    data = {"data.source": "coco", "coco.path": str(root), "data.transform": "reference"}
    data |= {"denoiser.layers": 1}
    kinds = {
        "text": {},
        "class": {"condition.kind": "class", "condition.classes": 4, "condition.null": "empty"},
        "none": {"condition.kind": "none"},
    }
    return {
        kind: pipeline.load(make_workdir(tmp_path_factory.mktemp(kind), data | changes))
        for kind, changes in kinds.items()
    }


def evaluation(model, cache, protocol, real=None):
    evaluator = Evaluator(protocol=protocol, networks={PRIMARY: network()})
    return Evaluation(
        model=model, evaluator=evaluator, cache=cache, settings={"calls": 2}, real=real
    )


def small(name, **changes):
    return dataclasses.replace(
        PROTOCOLS[name], **dict(subsets=4, subset_size=3, neighbours=2, draws=1) | changes
    )


def test_random_captions_of_over_sampled_held_out_images(models, tmp_path):
    how = evaluation(models["text"], tmp_path, small("vqdiffusion-coco", images=23, seed=1))
    asked = how.prompts("held_out_items")
    pictures = [how.source.files[i] for i, _ in asked]
    assert (
        len(asked) == 23
        and pictures == [pictures[i % 5] for i in range(23)]
        and len(set(pictures)) == 5
    )
    for record, text in asked:
        assert (
            text.split(" wording ")[0]
            == how.source.records[record].captions[0].split(" wording ")[0]
        )
    drawn = collections.Counter(text.split()[-1] for _, text in asked)
    assert set(drawn) == {"0", "1", "2"} and asked == how.prompts("held_out_items")
    other = evaluation(
        models["text"], tmp_path, small("vqdiffusion-coco", images=23, seed=2)
    ).prompts("held_out_items")
    assert [r for r, _ in other] == [r for r, _ in asked] and other != asked
    fewer = evaluation(models["text"], tmp_path, small("vqdiffusion-coco", images=3)).prompts(
        "held_out_items"
    )
    assert len({how.source.files[i] for i, _ in fewer}) == 3
    once = evaluation(
        models["text"],
        tmp_path,
        small("vqdiffusion-coco", images=23, repeat=False, captions="first"),
    ).prompts("train")
    assert [text for _, text in once] == [f"photograph {i} wording 0" for i in range(6)]


def test_class_and_unconditional_models_need_no_data_set(models, tmp_path):
    def prompts(kind, **changes):
        how = evaluation(models[kind], tmp_path, small("adm", images=10, **changes))
        asked = [text for _, text in how.prompts("held_out_items")]
        return asked, "source" in vars(how)

    assert prompts("class") == ([str(i % 4) for i in range(10)], False)
    assert prompts("none") == ([""] * 10, False)
    labels, read = prompts("class", classes="frequency")
    assert read and set(labels) == {"-1"}  # photographs have no class


def test_a_class_model_draws_all_classes_in_turn_and_is_compared_with_the_training_set(
    models, tmp_path
):
    how = evaluation(
        models["class"],
        tmp_path,
        small("vqdiffusion-imagenet", images=6, measures=("frechet",), held=3),
    )
    part = how.evaluate_split("held_out_items", tmp_path / "made", 3)
    want = np.concatenate([*models["class"].batches(["0", "1", "2", "3", "0", "1"], 3, calls=2)])
    np.testing.assert_array_equal(np.stack([part.images[i] for i in range(6)]), want)
    assert (
        part.result["reference"] == {"images": 6, "distinct": 6, "held": 3}
        and not (tmp_path / "made" / "metadata.jsonl").exists()
    )
    firsts = [i for i in range(18) if i % 3 == 0]
    real = network()(np.stack([how.source[i]["image"] for i in firsts]))
    moments = [
        Collected(count=6, indices=[], features=f, moments=Moments.of(f))
        for f in (network()(want), real)
    ]
    assert part.result["generated"] == {
        "fid": pytest.approx(frechet_measure("inception", *moments)["fid"], rel=1e-5)
    }


def test_an_empty_split_is_an_error_or_left_out(models, tmp_path):
    with pytest.raises(
        UserError, match="needs at least 4 images with prompts in the split held_out_cells, got 0"
    ):
        evaluation(models["text"], tmp_path, small("clean", images=9)).evaluate_split(
            "held_out_cells", tmp_path / "p", 4
        )
    assert (
        evaluation(models["text"], tmp_path, small("clean", images=9, repeat=False)).evaluate_split(
            "held_out_cells", tmp_path / "p", 4
        )
        is None
    )


@pytest.fixture(scope="module")
def over_sampled(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    protocol = small(
        "vqdiffusion-cub", images=12, measures=("frechet", "kid", "neighbours", "ceiling")
    )
    how = evaluation(models["text"], folder, protocol)
    return how, how.evaluate_split("held_out_items", folder / "pictures", 5), folder


def test_real_images_count_once_per_prompt(over_sampled):
    how, part, _ = over_sampled
    assert (
        part.result["reference"] == {"images": 12, "distinct": 5, "held": 5}
        and part.result["images"] == 12
    )
    records = [i for i, _ in how.prompts("held_out_items")]
    extract, real = network(), np.stack([how.source[i]["image"] for i in records])
    made = np.stack([part.images[i] for i in range(12)])
    a, b = (
        Collected(count=12, indices=[], features=f, moments=Moments.of(f))
        for f in (extract(made), extract(real))
    )
    assert part.result["generated"]["fid"] == pytest.approx(
        frechet_measure("inception", a, b)["fid"], rel=1e-5
    )
    assert (
        part.result["ceiling"].keys() == part.result["generated"].keys() and len(part.kernel) == 4
    )
    assert part.result["generated"].keys() == {
        "fid",
        "kid",
        "kid_interval",
        "kid_std",
        "kid_subset_size",
        "precision",
        "recall",
        "density",
        "coverage",
    }


def test_a_folder_scores_the_same_as_the_model_that_generated_it(models, over_sampled, tmp_path):
    protocol = small(
        "clean", images=12, measures=("frechet", "kid", "neighbours"), held=4, reference="train"
    )
    how = evaluation(models["text"], tmp_path, protocol)
    part = how.evaluate_split("held_out_items", tmp_path / "made", 5)
    assert part.result["reference"] == {"images": 6, "distinct": 6, "held": 4}
    (tmp_path / "real").mkdir()
    firsts = [i for i in range(18) if i % 3 == 0]
    for i in firsts:
        Image.fromarray(how.source[i]["image"]).save(tmp_path / "real" / f"{i:02d}.png")
    evaluator = how.evaluator
    scored = evaluator.score(
        ImageFolder(tmp_path / "made"), part.prompts, evaluator.reference(tmp_path / "real")
    )
    assert scored.result["reference"] == part.result["reference"] | {
        "folder": str(tmp_path / "real")
    }
    assert (
        part.result["generated"] == scored.result["generated"]
        and len(scored.result["generated"]) == 9
    )
    np.testing.assert_array_equal(part.similarity.values, scored.similarity.values)
    assert [firsts[i] for i in scored.similarity.nearest] == [
        part.similarity.images.records[i] for i in part.similarity.nearest
    ]
    moments = evaluator.collect_generated(
        iter([np.stack([how.source[i]["image"] for i in firsts])]), 6, ""
    )[PRIMARY].moments
    np.savez(tmp_path / "real.npz", mu=moments.mean, sigma=moments.covariance)
    known = evaluator.reference(tmp_path / "real.npz")
    statistics = evaluator.score(ImageFolder(tmp_path / "made"), part.prompts, known)
    assert statistics.similarity is None and statistics.result["generated"].keys() == {"fid"}
    assert statistics.result["generated"]["fid"] == pytest.approx(
        scored.result["generated"]["fid"], rel=1e-9
    )
    again = evaluation(models["text"], tmp_path, protocol, real=known).evaluate_split(
        "held_out_items", tmp_path / "made", 5
    )
    assert again.result["generated"] == statistics.result["generated"]


def test_missing_real_images_are_an_error_before_sampling(models, tmp_path):
    protocol = small("adm", images=5, reference="held_out_cells")
    with pytest.raises(
        UserError,
        match="the data set has no images in the split held_out_cells: name others with "
        "--reference",
    ):
        evaluation(models["class"], tmp_path, protocol).evaluate_split(
            "held_out_items", tmp_path / "p", 4
        )
    assert not (tmp_path / "p").exists()


def test_inception_and_clip_scores(over_sampled):
    """The inception score, and that of CLIP with its own captions, of pictures and their prompts."""
    protocol = small("vqdiffusion-cub", measures=("inception_score", "clip_score"))
    embedded = lambda texts: np.random.default_rng(len(texts)).normal(size=(len(texts), 6))
    evaluator = Evaluator(
        protocol=protocol,
        networks={PRIMARY: network(2048), "clip_score": network()},
        embed_texts=embedded,
    )
    pictures, real = over_sampled[1].images, over_sampled[1].similarity.images
    texts = [f"text {i}" for i in range(12)]
    scored = evaluator.score(pictures, texts, evaluator.collect_real(real))
    images = np.stack([pictures[i] for i in range(12)])
    logits = network(2048)(images) @ network(2048).params["fc"]["kernel"]
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(network()(images), embedded(texts))
    ]
    mean, deviation = inception_score(logits)
    assert scored.result["generated"] == {
        "inception_score": pytest.approx(mean),
        "inception_score_std": pytest.approx(deviation),
        "clip_score": pytest.approx(100 * np.maximum(cosines, 0).mean()),
    }
    np.testing.assert_allclose(scored.similarity.values, cosines, rtol=1e-5)
    assert "CLIP" in scored.similarity.meaning and evaluator.score(
        pictures, [], evaluator.collect_real(real)
    ).result["generated"].keys() == {"inception_score", "inception_score_std"}


def test_an_evaluation_without_git_writes_its_result(tmp_path, monkeypatch):
    """The commit is unknown then."""
    for name, first in (("made", 0), ("real", 10)):
        (tmp_path / name).mkdir()
        for i in range(first, first + 5):
            pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    toy = lambda protocol, **weights: Evaluator(protocol=protocol, networks={PRIMARY: network()})
    monkeypatch.setattr(run, "make_evaluator", toy)
    monkeypatch.setenv("PATH", str(tmp_path))
    run_in_process(
        "evaluate",
        f"--pictures={tmp_path / 'made'}",
        f"--reference={tmp_path / 'real'}",
        "--protocol=emoji",
        f"--out={tmp_path / 'r.json'}",
    )
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["provenance"]["commit"] is None
    assert result["pictures"]["generated"].keys() == {
        "vgg_kid",
        "vgg_kid_interval",
        "vgg_kid_std",
        "vgg_kid_subset_size",
    }


@pytest.mark.parametrize(
    "name,content,sentence",
    [
        (
            "metadata.jsonl",
            '{"image_id": 3, "bbox": [1, 2]}\n',
            "no column of images, only image_id",
        ),
        ("metadata.csv", "id,prompt\n3,a cat\n", "has no column of images, only id, prompt"),
        ("metadata.jsonl", "not JSON\n", "line 1 is not JSON"),
        ("metadata.csv", "file_name,text\n../a.png,a cat\n", "points outside the folder"),
    ],
)
def test_a_foreign_table_is_ignored_where_no_captions_are_needed(
    tmp_path, monkeypatch, name, content, sentence
):
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / name).write_text(content)
    toy = lambda protocol, **weights: Evaluator(protocol=protocol, networks={PRIMARY: network()})
    monkeypatch.setattr(run, "make_evaluator", toy)
    both = [f"--pictures={tmp_path}", f"--reference={tmp_path}", f"--out={tmp_path / 'r.json'}"]
    said = run_in_process("evaluate", *both, "--protocol=emoji").stdout
    assert said.count("captions are ignored, since the protocol emoji needs none: ") == 1
    assert sentence in said and (tmp_path / "r.json").exists()
    monkeypatch.setitem(PROTOCOLS, "emoji", small("emoji", measures=("kid", "clip_score")))
    refused = run_in_process("evaluate", *both, "--protocol=emoji", ok=False)
    assert refused.returncode == 2 and sentence in refused.stderr


def test_clean_takes_images_of_several_sizes_and_an_archive_of_images(tmp_path, monkeypatch):
    """With the features of the images that are resized one by one."""
    (tmp_path / "mixed").mkdir()
    x = [np.random.default_rng(i).integers(0, 256, (9 + i % 3, 8, 3), np.uint8) for i in range(8)]
    for i, pixels in enumerate(x):
        Image.fromarray(pixels).save(tmp_path / "mixed" / f"{i}.png")
    resize = lambda image: np.asarray(Image.fromarray(image).resize((16, 16)))
    np.savez(tmp_path / "resized.npz", np.stack([*map(resize, x)]))
    np.savez(tmp_path / "real.npz", np.stack([resize(image[::-1]) for image in x]))
    one = dataclasses.replace(network(), resize_one=resize)
    toy = lambda protocol, **weights: Evaluator(protocol=protocol, networks={PRIMARY: one})
    monkeypatch.setattr(run, "make_evaluator", toy)
    monkeypatch.setitem(PROTOCOLS, "clean", small("clean"))
    measured = {}
    for name in ("mixed", "resized.npz"):
        run_in_process(
            "evaluate",
            f"--pictures={tmp_path / name}",
            f"--reference={tmp_path / 'real.npz'}",
            "--protocol=clean",
            f"--out={tmp_path / 'r.json'}",
        )
        measured[name] = json.loads((tmp_path / "r.json").read_text())["pictures"]
    assert measured["mixed"] == measured["resized.npz"]
    assert measured["mixed"]["reference"]["file"] == str(tmp_path / "real.npz")
    assert measured["mixed"]["generated"]["fid"] > 0


@pytest.fixture
def adm_files(tmp_path):
    """A reference batch as guided-diffusion publishes it, and files with parts of it."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (9, 16, 16, 3), np.uint8)
    moments = Moments.of(network()(random.integers(0, 256, (30, 16, 16, 3), np.uint8)))
    both = {"mu": moments.mean, "sigma": moments.covariance}
    spatial = {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    files = {
        "batch": {"arr_0": pixels, **both, **spatial},
        "images": {"arr_0": pixels},
        "statistics": both | spatial,
        "plain": both,
        "nothing": spatial,
    }
    for name, arrays in files.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    return lambda name: tmp_path / f"{name}.npz"


def test_a_reference_batch_of_guided_diffusion_gives_images_and_statistics(adm_files, capsys):
    generated = [
        np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8) for i in range(50, 58)
    ]
    protocol = small("adm", measures=("frechet", "neighbours"))
    adm = Evaluator(protocol=protocol, networks={PRIMARY: network()})
    score = lambda name: adm.score(generated, [], adm.reference(adm_files(name), (16, 16)))
    whole, images, statistics = (score(name) for name in ("batch", "images", "statistics"))
    assert capsys.readouterr().out == (
        f"left out, since {adm_files('statistics')} has statistics but no images: neighbours\n"
    )
    values = lambda scored: scored.result["generated"]
    assert values(whole)["fid"] == values(statistics)["fid"] != values(images)["fid"]
    assert values(statistics).keys() == {"fid"} and statistics.similarity is None
    assert values(whole) == values(images) | values(statistics) and len(values(whole)) == 5
    file = str(adm_files("batch"))
    counts = {"images": 9, "distinct": 9, "held": 9}
    assert whole.result["reference"] == {"statistics": file, "file": file} | counts
    assert images.result["reference"] == {"file": str(adm_files("images"))} | counts
    assert statistics.result["reference"] == {"statistics": str(adm_files("statistics"))}


def test_statistics_of_other_features_are_not_compared(adm_files, capsys):
    clean = Evaluator(protocol=small("clean"), networks={PRIMARY: network()})
    real = clean.reference(adm_files("batch"))
    assert real.statistics is None and real.collected.count == 9
    assert capsys.readouterr().out == (
        f"only the images in {adm_files('batch')} are used, since its statistics are of "
        "guided-diffusion: of InceptionV3 with the resizing of the protocol adm, not of clean\n"
    )
    with pytest.raises(
        UserError,
        match="statistics as in .*statistics.npz are of guided-diffusion: .* adm, not of clean: name a",
    ):
        clean.reference(adm_files("statistics"))
    assert clean.reference(adm_files("plain")).statistics  # of unknown origin, as pytorch-fid's
    kid = Evaluator(protocol=small("emoji", measures=("kid",)), networks={PRIMARY: network()})
    with pytest.raises(UserError, match="only give a Fréchet distance, which the protocol emoji"):
        kid.reference(adm_files("plain"))
    with pytest.raises(UserError, match="neither images, as the array arr_0, nor statistics"):
        clean.reference(adm_files("nothing"))
    with pytest.raises(
        UserError,
        match=r"plain.npz has statistics of 6 features, and the protocol clean has 7 \(mixed\)",
    ):
        Evaluator(protocol=small("clean"), networks={PRIMARY: network(7)}).reference(
            adm_files("plain"), (16, 16)
        )


@pytest.mark.parametrize("kind", ["itself", "a copy", "black images"])
def test_equal_folders_have_no_distance_and_a_page(tmp_path, monkeypatch, kind):
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        pixels = pixels * (kind != "black images")
        for name in ("made", "real"):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    toy = lambda protocol, **weights: Evaluator(protocol=protocol, networks={PRIMARY: network()})
    monkeypatch.setattr(run, "make_evaluator", toy)
    reference = "made" if kind == "itself" else "real"
    done = run_in_process(
        "evaluate",
        f"--pictures={tmp_path / 'made'}",
        f"--reference={tmp_path / reference}",
        "--protocol=emoji",
        f"--out={tmp_path / 'r.json'}",
    )
    assert "9 of 9 images are copies of real ones" in done.stdout
    result = json.loads((tmp_path / "r.json").read_text())["pictures"]
    assert result["copies"] == 9 and result["generated"]["vgg_kid"] == pytest.approx(0, abs=1e-12)
    low, high = result["generated"]["vgg_kid_interval"]
    assert low <= result["generated"]["vgg_kid"] <= high
    assert (tmp_path / "r.png").exists()


def test_what_a_protocol_leaves_out_is_said(tmp_path, monkeypatch):
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    protocol = small("adm", measures=("frechet",))
    monkeypatch.setitem(PROTOCOLS, "adm", protocol)
    toy = lambda protocol, **weights: Evaluator(protocol=protocol, networks={PRIMARY: network()})
    monkeypatch.setattr(run, "make_evaluator", toy)
    folder = f"{tmp_path}"
    done = run_in_process(
        "evaluate",
        f"--pictures={folder}",
        f"--reference={folder}",
        "--protocol=adm",
        f"--out={tmp_path / 'r.json'}",
    )
    assert "the protocol adm leaves out of the published one: sFID" in done.stdout
    assert "sFID" in json.loads((tmp_path / "r.json").read_text())["protocol"]["omits"]


def test_a_protocol_without_image_measures_needs_a_model():
    only = Protocol(name="inner", images=5, measures=("bound", "reconstruction"))
    with pytest.raises(UserError, match="the protocol inner only measures models"):
        without_model(only)
    assert without_model(PROTOCOLS["emoji"]).measures == ("kid",)


def test_record_images(over_sampled):
    how = over_sampled[0]
    np.testing.assert_array_equal(RecordImages(how.source, [4, 9])[1], how.source[9]["image"])
