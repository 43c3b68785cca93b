"""The report of a workdir: it shows the numbers of the files, loads nothing, and survives damage."""

import base64
import html.parser
import io
import json
import os
import re
import shutil
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image

from helpers.report_folder import EVALUATION, EVIL, colours, entropy, fill
from vqd_jax.config.defaults import defaults
from vqd_jax.core.errors import UserError
from vqd_jax.core.image_grid import save_png
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import Log, read_metrics
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.samplers.call_planner import fixed_order_cost, random_order_cost
from vqd_jax.web.report import contents, page, run_info

VOID = {"meta", "img", "input", "br"}


class Parsed(html.parser.HTMLParser):
    """The elements of a page, as (name, attributes), its texts, and the JSON in it; a page whose
    elements do not close is an error.
    """

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open, self.ids = [], [], [], set()
        self.feed(text)
        self.close()
        assert not self.open
        self.data = json.loads(next(text for text, a in self.texts if a.get("id") == "data"))
        self.text = " ".join(text for text, a in self.texts if a.get("id") != "data")

    def handle_starttag(self, name, attributes):
        attributes = dict(attributes)
        self.elements.append((name, attributes))
        if "id" in attributes:
            assert attributes["id"] not in self.ids
            self.ids.add(attributes["id"])
        if name not in VOID:
            self.open.append((name, attributes))

    def handle_endtag(self, name):
        assert self.open.pop()[0] == name

    def handle_data(self, text):
        if self.open and text.strip():
            self.texts.append((text, self.open[-1][1]))

    def all(self, name):
        return [attributes for found, attributes in self.elements if found == name]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("runs") / "a <b>run & more")


@pytest.fixture(scope="module")
def parsed(workdir):
    return Parsed(page.page(workdir))


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))))


def test_curves_are_the_numbers_of_the_log(workdir, parsed):
    curves = {
        found["stage"]: {
            (line["name"], panel["name"]): line
            for panel in found["panels"]
            for line in panel["lines"]
        }
        for found in parsed.data["curves"]
    }
    assert [*curves] == ["vqvae", "diffusion"]
    assert {*curves["vqvae"]} == {
        ("train", "loss"),
        ("train", "step_time"),
        ("train", "goodput"),
        ("train", "examples_per_second"),
        ("held_out", "psnr"),
    }  # what is no number, faults and the count of examples are no curves
    for stage, lines in curves.items():
        for (part, name), line in lines.items():
            rows = {
                row["step"]: row[f"{part}/{name}"]
                for row in read_metrics(workdir / stage)
                if f"{part}/{name}" in row
            }
            assert [rows[step] for step in line["steps"]] == line["values"] and len(rows) == line[
                "of"
            ]
            assert (line["steps"][0], line["steps"][-1]) == (min(rows), max(rows))
            assert (
                len(line["steps"]) == min(len(rows), contents.MAX_POINTS)
                and max(np.diff(line["steps"]), default=1) <= 3
            )
    drawn = [a["data-panel"] for a in parsed.all("figure") if "data-panel" in a]
    assert sorted(drawn) == sorted(
        f"{i},{j}"
        for i, found in enumerate(parsed.data["curves"])
        for j, _ in enumerate(found["panels"])
    )


def test_images_are_those_of_the_files_thinned_and_reduced(workdir, parsed):
    codec, denoiser = parsed.data["images"]
    assert (codec["stage"], codec["kind"], len(codec["steps"])) == (
        "vqvae",
        "reconstructions",
        contents.MAX_IMAGES,
    )
    assert (codec["steps"][0], codec["steps"][-1]) == (100, 5000) and {
        *np.diff(codec["steps"])
    } == {100, 200}
    for step, uri in zip(codec["steps"], codec["images"]):
        np.testing.assert_array_equal(pixels(uri), colours(step))
    assert denoiser["steps"] == [10] and denoiser["images"][0].startswith("data:image/jpeg")
    assert pixels(denoiser["images"][0]).shape == (900, 1200, 3)
    images = [a for a in parsed.all("img")]
    assert [a["src"] for a in images[:2]] == [codec["images"][-1], denoiser["images"][0]]
    np.testing.assert_array_equal(pixels(images[2]["src"]), colours(2))
    np.testing.assert_array_equal(pixels(images[3]["src"]), colours(3))
    assert all(len(a["alt"]) > 10 for a in images) and "after step 5,000" in images[0]["alt"]


def test_the_same_images_are_shown_once(workdir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    folder = Workdir(copy)
    for seed, shown in ((1, 1), (2, 2)):  # samples at the end of training, and of another step
        save_png(folder.samples("diffusion"), colours(seed, 1500, 2000))
        page_images = [a for a in Parsed(page.page(copy)).all("img") if "Denoiser" in a["alt"]]
        assert len({a["src"] for a in page_images}) == len(page_images) == shown


def test_codebook_use_is_counted(parsed):
    assert parsed.data["codes"] == {"steps": [100, 200], "counts": [[0, 3, 1], [2, 2, 0]]}
    assert (
        "3 codes, 66.7% of them in use on held-out images after step 200; the most frequent one makes "
        "up 50.0% of all tokens" in parsed.text
    )


def test_the_area_between_plan_and_curve_is_the_kl_gap(parsed):
    costs = {
        "random": random_order_cost(entropy()["random"]),
        "halton": fixed_order_cost(entropy()["halton"]),
    }
    for found in parsed.data["plans"]:
        assert [plan["calls"] for plan in found["plans"]] == [
            4,
            5,
            8,
        ]  # and the config's own, if there are as many tokens
        for plan in found["plans"]:
            assert (
                sum(plan["counts"]) == found["tokens"] == 12
                and len(plan["counts"]) == plan["calls"]
            )
            known = np.append(0, np.cumsum(plan["counts"]))
            assert plan["kl_gap"] == pytest.approx(
                sum(costs[found["order"]][a, b] for a, b in zip(known, known[1:])), abs=1e-3
            )
            assert np.subtract(plan["at_draw"], found["curve"]).sum() == pytest.approx(
                plan["kl_gap"], abs=2e-3
            )


def test_tables_show_evaluations_times_machine_and_changed_settings(parsed):
    for said in (
        "mine.json",
        "protocol emoji; steps: Codec (vqvae) 5,000, Denoiser (diffusion) 10; calls 5",
        "seen cells (1,234)",
        "25.0%",
        "0.5000 (std 0.1250)",
        "75.0%",
        "1.443",
        "21.5",
        "8 × TPU <v5>",
        "2.5",
        "jax 1.2.3",
        "50.0%",
        "32.0",
        "40,000",
        "2 batches from batch 10 on were skipped after a bad loss or gradient in step 12",
    ):
        assert said in parsed.text, said
    assert "chance" not in parsed.text
    changed = (
        parsed.text.partition("Changed from the defaults:")[2].partition("All settings")[0].split()
    )
    assert {
        word for word in changed if "." in word and word.partition(".")[0] in dict(defaults())
    } == {"denoiser.layers", "preview.prompts", "sampling.calls"}


def test_nothing_is_loaded_and_no_text_becomes_an_element(workdir, parsed):
    for name, attributes in parsed.elements:
        assert name not in ("link", "iframe", "object", "b", "base") and not any(
            key.startswith("on") for key in attributes
        )
        for key in ("src", "href", "data", "action", "srcset", "poster"):
            assert attributes.get(key, "data:").startswith(("data:", "#")), (name, attributes)
    assert "a <b>run & more" in parsed.text and EVIL in parsed.text
    (style,), scripts = parsed.all("style"), parsed.all("script")
    text = page.page(workdir)
    assert (
        len(scripts) == 2
        and text.count("</script") == 2
        and "url(" not in text
        and "@import" not in text
        and style == {}
    )
    policy = next(
        a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'") and "http" not in policy


def test_the_same_files_give_the_same_bytes(workdir, tmp_path):
    for name in ("one.html", "two.html"):
        page.write(workdir, tmp_path / "new" / name)
    assert (
        (tmp_path / "new/one.html").read_bytes()
        == (tmp_path / "new/two.html").read_bytes()
        == page.page(workdir).encode()
    )
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == ["one.html", "two.html"]


def test_missing_files_are_left_out(tmp_path):
    with pytest.raises(UserError, match="there is nothing to report in"):
        page.page(tmp_path)
    with pytest.raises(UserError, match="there is no workdir .*none"):
        page.page(tmp_path / "none")
    log = Log(tmp_path / "vqvae")
    log.write(1, {"loss": 1}, "train/")
    log.close()
    titles = {a["id"] for a in Parsed(page.page(tmp_path)).all("section")}
    assert titles == {"training-curves", "time-and-hardware"}


@pytest.mark.parametrize(
    "file,sentence,lost",
    [
        (
            "vqvae/metrics.jsonl",
            "metrics.jsonl has no line of metrics",
            {"training-curves", "images", "time-and-hardware"},
        ),
        ("diffusion/plan.npz", "the plan .* is damaged", {"uncertainty-and-sampling-plans"}),
        ("vqvae/codes-00000200.npy", "codes-00000200.npy is damaged", {"codebook-use"}),
        ("diffusion/machine.json", "a machine.json in .* is damaged", {"time-and-hardware"}),
        ("mine.json", "mine.json is not a result of this version of vqd evaluate", {"evaluations"}),
    ],
)
def test_damaged_files_are_notes_and_the_rest_is_shown(workdir, tmp_path, file, sentence, lost):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    odd = (
        json.dumps(EVALUATION | {"seen_cells": {"generated": {"vgg_kid": "none"}}})
        if file == "mine.json"
        else "nonsense\n{}\n"
    )
    (copy / file).write_text(odd)
    parsed = Parsed(page.page(copy))
    assert re.search(sentence, parsed.text)
    assert {a["id"] for a in parsed.all("section")} == {
        "training-curves",
        "images",
        "codebook-use",
        "uncertainty-and-sampling-plans",
        "evaluations",
        "time-and-hardware",
        "configuration",
    }
    assert "Changed from the defaults" in parsed.text and ("retrieval@1" in parsed.text) == (
        "evaluations" not in lost
    )


def test_an_emptied_log_is_told(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "copy")
    (tmp_path / "copy/diffusion/metrics.jsonl").write_text("")
    parsed = Parsed(page.page(tmp_path / "copy"))
    assert "Denoiser (diffusion) was started, and its log is empty." in parsed.text
    assert "TPU <v5>" in parsed.text


@pytest.mark.parametrize("last", [None, 5, 6, 8, 10])
def test_a_log_that_ends_before_the_last_checkpoint_is_told(workdir, tmp_path, last):
    """Here lines are written every 2 steps, and the checkpoint is of step 9."""
    shutil.copytree(workdir, tmp_path / "copy")
    config = defaults().unlock()
    config.diffusion_train.batch_size, config.diffusion_train.log_every = 8, 16
    with Checkpoints(tmp_path / "copy/diffusion/checkpoints") as checkpoints:
        shutil.rmtree(tmp_path / "copy/diffusion/checkpoints/10")
        checkpoints.save(9, {"config": json.loads(config.to_json())}, wait=True)
    steps = [2] if last is None else [2, last]
    rows = [json.dumps({"step": step, "time": step, "train/loss": 1.0}) + "\n" for step in steps]
    (tmp_path / "copy/diffusion/metrics.jsonl").write_text("".join(rows))
    told = (
        f"Denoiser (diffusion): the log ends at step {last or 2}, before the last checkpoint, of "
        "step 9: lines are missing."
    )
    assert (told in Parsed(page.page(tmp_path / "copy")).text) == (last not in (8, 10))


GHOSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def odd_file(path, kind, secret):
    """What a stranger may have put in the place of a file of a workdir."""
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(secret)
    elif kind == "bomb":  # 100,000 x 100,000 pixels in its header
        save_png(path, colours(1))
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", 100_000, 100_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
    elif kind == "cut":
        save_png(path, colours(1))
        path.write_bytes(path.read_bytes()[:-300])
    elif kind == "gif":
        Image.fromarray(colours(1)).save(path, format="GIF")
    elif kind == "list":
        path.write_text("[]")
    elif kind == "deep":
        path.write_text("[" * 100_000)
    elif kind == "objects":
        with path.open("wb") as file:
            np.save(file, np.array([{}]), allow_pickle=True)
    elif kind == "huge":
        header = {"descr": "<i8", "fortran_order": False, "shape": (10**13,)}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
    else:
        path.write_bytes(GHOSTSCRIPT)


PICTURES = ("vqvae/reconstructions-00005000.png", "samples.png", "mine.png")
ODD = [
    *((name, kind) for name in PICTURES for kind in ("pipe", "link", "bomb", "cut", "gif", "eps")),
    *(("vqvae/codes-00000200.npy", kind) for kind in ("pipe", "link", "objects", "huge", "eps")),
    *(("diffusion/machine.json", kind) for kind in ("pipe", "list", "deep", "eps")),
    *(("vqvae/metrics.jsonl", kind) for kind in ("pipe", "eps")),
    *(("mine.json", kind) for kind in ("pipe", "link", "deep", "eps")),
    *(("diffusion/plan.npz", kind) for kind in ("pipe", "objects", "huge", "eps")),
]


@pytest.mark.parametrize("name,kind", ODD)
def test_a_strangers_file_is_a_note(workdir, tmp_path, name, kind, monkeypatch):
    """Never opened as another format, followed out of the workdir, waited for, or unfolded."""
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    secret = tmp_path / "secret.png"
    save_png(secret, colours(7))
    odd_file(copy / name, kind, secret)
    programs = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: programs.append(a))
    report = page.page(copy)
    parsed = Parsed(report)
    assert re.search(r"damaged|is no|cannot be shown|has no line", parsed.text), parsed.text
    assert not programs and len(parsed.all("section")) == 7
    assert str(tmp_path) not in report
    shown = [attributes["src"] for attributes in parsed.all("img")]
    if name in PICTURES:  # the other pictures are there, and of the series the other steps
        assert len(shown) == 4 - (name != PICTURES[0])
        if name == PICTURES[0]:
            steps = parsed.data["images"][0]["steps"]
            assert 5000 not in steps and len(steps) == contents.MAX_IMAGES - 1
    assert base64.b64encode(secret.read_bytes()).decode() not in report


def test_during_training_damage_is_printed_and_a_failed_write_is_an_error(
    workdir, tmp_path, capsys, monkeypatch
):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    page.refresh(copy)
    before = Workdir(copy).report.read_bytes()
    assert before == page.page(copy).encode() and capsys.readouterr().out == ""
    with monkeypatch.context() as patched:
        patched.setattr(page, "page", lambda workdir: len(1))
        page.refresh(copy)
    assert (
        "report.html is not updated: TypeError" in capsys.readouterr().out
        and Workdir(copy).report.read_bytes() == before
    )
    (copy / "vqvae" / "metrics.jsonl").unlink()
    Workdir(copy).report.unlink()
    Workdir(copy).report.mkdir()
    with pytest.raises(UserError, match="cannot write the report .*report.html"):
        page.refresh(copy)
    assert not [*copy.glob(".*.part")]


def test_durations():
    assert [run_info.duration(s) for s in (83, 725, 3 * 3600 + 290, 52 * 3600)] == [
        "83 s",
        "12 min",
        "3 h 05 min",
        "2 d 4 h",
    ]
