"""Command lines on real emoji: help, training that resumes bit for bit, sampling, and bad input that
gets one sentence. A command runs in this process, except for one start of each as a subprocess.
"""

import fcntl
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from helpers import ROOT
from helpers.commands import (
    contents,
    folder_of_emoji,
    run,
    run_in_process,
    same_training,
    training,
)
from vqd_jax.__main__ import COMMANDS
from vqd_jax.cli import runner
from vqd_jax.core.checksums import SEAL
from vqd_jax.runtime.checkpoint import Checkpoints
from vqd_jax.runtime.log import TIMINGS, read_metrics
from vqd_jax.train.meter import useful_seconds


def train(workdir, cache, *extra, ok=True, variant=""):
    return run(*training(workdir, cache, *extra, variant=variant), ok=ok)


def test_the_commands_are_listed_fast_by_both_doors():
    listed = [
        subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
        for command in (
            [sys.executable, "-m", "vqd_jax", "--help"],
            [sys.executable, "-c", "from vqd_jax.__main__ import main; main()"],
        )
    ]
    assert listed[0] == listed[1] and max(map(len, listed[0].splitlines())) <= 100
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", listed[0], re.MULTILINE)
    assert {path.stem for path in (ROOT / "vqd_jax" / "cli").glob("*.py")} == {
        *COMMANDS,
        "__init__",
        "flags",
        "runner",
    }
    script = "import sys; sys.argv = ['vqd', '--help']; import vqd_jax.__main__ as m; m.main(); "
    script += "print({'absl', 'numpy', 'jax', 'vqd_jax.cli.runner'} & {*sys.modules})"
    light = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert light.stdout.splitlines()[-1] == "set()"
    wrong = run("vqd_jax", "paint", ok=False)
    assert wrong.returncode == 2 and wrong.stderr == (
        "error: there is no command 'paint'; `vqd --help` lists them\n"
    )
    assert "did you mean sample?" in run("vqd_jax", "sampel", ok=False).stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_its_flags(name):
    short, long = (run_in_process(name, flag) for flag in ("-h", "--help"))
    assert short == long and not long.stderr
    command = sys.modules[f"vqd_jax.cli.{name}"]
    usage, _, does, *rest = long.stdout.splitlines()
    assert usage.startswith(f"usage: vqd {name} ") and "[--flag=value ...]" in usage
    assert does == command.__doc__.splitlines()[0] and does.endswith((".", ":")) is True
    assert max(map(len, long.stdout.splitlines())) <= 100
    options = flags.FlagValues()
    command.define_flags(options)
    listed = re.findall(r"^  --(?:\[no\])?(\w+)", "\n".join(rest), re.MULTILINE)
    assert listed == sorted(options)
    for flag in options:
        assert re.match("[a-z]|[A-Z]{2}|JSON|CLIP|PNG|NAME", options[flag].help.lstrip("<")), flag
    for text, flag in (("(default: 4)", "num"), ("(default: 7860)", "port")):
        assert (text in long.stdout) == (flag in options)


def test_help_is_found_without_the_heavy_libraries():
    """All commands in one fresh interpreter, which has neither JAX nor Flax at the end."""
    script = """
import sys
from vqd_jax.__main__ import COMMANDS
from vqd_jax.cli import runner
for name in COMMANDS:
    try:
        runner.parse(name, ["--help"])
    except SystemExit as end:
        assert end.code == 0
print({"jax", "flax", "numpy", "orbax", "PIL", "vqd_jax.config"} & {*sys.modules})
"""
    fresh = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert fresh.returncode == 0, fresh.stderr
    assert fresh.stdout.splitlines()[-1] == "set()"


STARTS = {
    "train": ([], "--config is missing; for a first run take --config=emoji"),
    "prepare": (["--config=none.py"], "there is no config file none.py"),
    "sample": (["--calls=x"], "--calls=x"),
    "demo": (["--workdir=x", "--port=99999"], "--port=99999"),
    "explain": (["--workdir=x", "--sampler=best"], "--sampler=best"),
    "evaluate": (["--workdir=x", "stray"], "unexpected argument 'stray'"),
    "plan": (["--cals=3"], "there is no flag --cals; did you mean --calls?"),
    "plan_memory": (["--config=configs/emoji.py:x"], "this config has no variant 'x'"),
    "report": (["--workdir=nowhere"], "there is no workdir nowhere"),
    "export": (["--workdir=nowhere"], "there is no workdir nowhere"),
    "convert": (["gone.safetensors"], "give the weights and the workdir to make"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_starts_as_a_process(name):
    arguments, sentence = STARTS[name]
    done = run("vqd_jax", name, *arguments, ok=False)
    assert done.returncode == 2 and not done.stdout, done
    assert done.stderr.startswith("error: ") and sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    if name == "train":
        same = run("vqd_jax.main", *arguments, ok=False)
        assert (same.returncode, same.stderr) == (done.returncode, done.stderr)


def test_how_a_command_ends_is_its_status(capsys):
    def fails(error):
        def main():
            raise error

        return main

    said = lambda: capsys.readouterr().err
    assert runner.status(lambda: None) == 0 and said() == ""
    assert runner.status(fails(runner.UserError("no"))) == 2 and said() == "error: no\n"
    assert runner.status(fails(KeyboardInterrupt()), again="resumes") == 130
    assert said() == "\ninterrupted; the same command resumes\n"
    gone = FileNotFoundError(2, "No such file or directory", "x.png")
    assert runner.status(fails(gone)) == 2
    assert said() == "error: x.png: No such file or directory\n"
    with pytest.raises(OSError, match="a bug"):
        runner.status(fails(OSError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        runner.status(fails(ValueError("a bug")))


def test_main_ends_with_pictures_and_says_where(trained):
    workdir, printed = trained
    assert str(workdir / "samples.png") in printed
    assert Image.open(workdir / "samples.png").size[0] > 300
    captions = (workdir / "captions.txt").read_text().splitlines()
    assert len(captions) == len({*captions}) > 3 and all(" emoji of " in c for c in captions)
    for stage, tag in (("vqvae", "held_out/psnr"), ("diffusion", "held_out/bits_per_token_train")):
        rows = read_metrics(workdir / stage / "metrics.jsonl")
        assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
        assert [row["step"] for row in rows if tag in row] == [3, 6]
        assert list((workdir / stage / "tensorboard").iterdir())
        assert Checkpoints(workdir / stage / "checkpoints", read_only=True).steps() == [3, 6]
        table = workdir / stage / "parameters.txt"
        assert f" parameters, listed in {table}" in printed and "Total: " in table.read_text()


def measured(workdir, stage):
    """When the stage began, as its log has it, and its last line of training, whose goodput is what
    can be read from the disk.
    """
    rows = read_metrics(workdir / stage / "metrics.jsonl")
    assert rows[0].keys() == {"step", "time"} and rows[0]["step"] == 0
    seconds, step = useful_seconds(rows)
    line = [row for row in rows if "train/loss" in row][-1]
    assert step == line["step"] == 6
    assert line["train/goodput"] == pytest.approx(
        seconds / (line["time"] - rows[0]["time"]), rel=0.05
    )
    return rows[0]["time"], line


def test_a_run_says_how_fast_it_is(trained):
    workdir, printed = trained
    for stage in ("vqvae", "diffusion"):
        _, line = measured(workdir, stage)
        assert TIMINGS - line.keys() == {
            SEAL,  # which reading checks and removes
            "train/mfu",
            "train/device_memory",
            "train/device_memory_peak",
        }  # a CPU has none
        assert 0 < line["train/goodput"] < 1 and 0 <= line["train/input_wait"] < 1
        assert line["train/step_time"] == pytest.approx(
            8 / line["train/examples_per_second"]
        )  # a line for each step
        number, unit = re.search(
            rf"{stage}: (\S+) ([MG])FLOP a step, on \d+ x cpu \(peak unknown: no mfu\)", printed
        ).groups()
        operations = float(number) * {"M": 1e6, "G": 1e9}[unit]
        assert line["train/flops_per_second"] * line["train/step_time"] == pytest.approx(
            operations, rel=0.01
        )


@pytest.mark.parametrize("stage", [pytest.param("vqvae", marks=pytest.mark.slow), "diffusion"])
def test_six_steps_are_three_and_a_resume_and_three(trained, cache, tmp_path, stage):
    workdir, _ = trained
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / stage / "checkpoints" / "6")
    if stage == "vqvae":
        shutil.rmtree(again / "diffusion")
    done = train(again, cache, "--config.profile.steps=2")
    assert f"{stage}: 3 of 6 steps" in done.stdout
    assert (
        "trace of steps 5 to 6" in done.stdout
        and len([*(again / stage / "profile").rglob("*.trace.json.gz")]) == 1
    )
    assert measured(again, stage)[0] == measured(workdir, stage)[0]  # all that lies between counts
    same_training(workdir, again, {stage, "diffusion"})


@pytest.mark.slow
def test_the_autoregressive_baseline_trains_on_the_same_codec_and_draws(trained, cache, tmp_path):
    workdir = tmp_path / "emoji"
    shutil.copytree(trained[0], workdir)
    begun = contents(workdir)
    train(workdir, cache, variant=":autoregressive")
    assert {
        k: v
        for k, v in contents(workdir).items()
        if not k.startswith(("autoregressive", "samples-auto", "report"))
    } == {k: v for k, v in begun.items() if k != "report.html"}
    assert Image.open(workdir / "samples-autoregressive.png").size[0] > 300
    checkpoints = Checkpoints(workdir / "autoregressive" / "checkpoints", read_only=True)
    state = checkpoints.restore("state")
    shutil.rmtree(workdir / "autoregressive" / "checkpoints" / "6")
    assert "autoregressive: 3 of 6 steps" in train(workdir, cache, variant=":autoregressive").stdout
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore("state"), state)

    made = []
    for stage in ((), ("--stage=autoregressive", f"--trace={tmp_path / 'trace.png'}")):
        run_in_process(
            "sample",
            f"--workdir={workdir}",
            "--prompt=a dog",
            "--num=2",
            *stage,
            f"--out={tmp_path / 'x.png'}",
        )
        made.append(json.loads(Image.open(tmp_path / "x.png").text["vqd_jax"]))
    assert [(m["sampler"], m["calls"]) for m in made] == [("ancestral", 3), ("autoregressive", 64)]
    shutil.rmtree(workdir / "diffusion")
    run_in_process(
        "evaluate",
        f"--workdir={workdir}",
        f"--cache={cache}",
        f"--out={tmp_path / 'r.json'}",
    )
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["provenance"]["steps"] == {"vqvae": 6, "autoregressive": 6}
    assert (
        result["sampling"]["sampler"] == "autoregressive"
        and 0 < result["bound"]["train"]["bits_per_token"] < 8
    )
    for extra, sentence in (
        (["--calls=5"], "for this autoregressive model calls can only be 64, got 5"),
        (["--stage=diffusion"], "has no stage diffusion, only autoregressive"),
    ):
        bad = run_in_process("sample", f"--workdir={workdir}", "--prompt=a dog", *extra, ok=False)
        assert bad.returncode != 0 and "Traceback" not in bad.stderr and sentence in bad.stderr


def test_sampling_is_repeatable_and_writes_nothing_to_the_workdir(trained, tmp_path):
    workdir, _ = trained
    before, made = contents(workdir), []
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        run_in_process(
            "sample",
            f"--workdir={workdir}",
            "--prompt=a google style emoji of a red apple",
            "--prompt=日本語の犬",
            "--num=3",
            "--batch=2",
            "--guidance=3",
            "--temperature=0.9",
            "--top_p=0.9",
            f"--seed={seed}",
            f"--out={tmp_path / name}",
        )
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1] != made[2]
    assert json.loads(Image.open(tmp_path / "a.png").text["vqd_jax"])["guidance"] == 3
    assert contents(workdir) == before


@pytest.mark.slow  # 15 s
def test_samplers_edits_and_plans_on_the_command_line(trained, cache, tmp_path):
    workdir = tmp_path / "emoji"
    shutil.copytree(trained[0], workdir)
    planned = run_in_process(
        "plan",
        f"--workdir={workdir}",
        f"--cache={cache}",
        "--calls=5",
        "--images=8",
        "--points=3",
    )
    assert (
        "tokens at the 5 calls" in planned.stdout
        and Image.open(workdir / "diffusion" / "plan.png").size[0] > 300
    )
    before = contents(workdir)
    run_in_process(
        "sample",
        f"--workdir={workdir}",
        "--prompt=a cat AND a dog :0.5",
        "--negative_prompt=a tree",
        "--num=2",
        "--sampler=counts",
        "--calls=5",
        "--option=order=halton",
        "--ramp",
        "--guidance_below=0.9",
        "--top_k=9",
        f"--trace={tmp_path / 'trace.png'}",
        f"--out={tmp_path / 'two.png'}",
    )
    used = json.loads(Image.open(tmp_path / "two.png").text["vqd_jax"])
    assert (
        used["sampler"] == "counts"
        and used["order"] == "halton"
        and used["negative_prompt"] == "a tree"
        and used["ramp"] is True
    )
    assert Image.open(tmp_path / "trace.png").size[0] > 5 * 96  # one picture for each call
    Image.new("RGB", (40, 32), "orange").save(tmp_path / "orange.png")
    mask = Image.new("L", (40, 32))
    mask.paste(255, (8, 8, 24, 20))
    mask.save(tmp_path / "mask.png")
    run_in_process(
        "sample",
        f"--workdir={workdir}",
        "--prompt=a dog",
        "--num=1",
        f"--init_image={tmp_path / 'orange.png'}",
        f"--mask={tmp_path / 'mask.png'}",
        "--extend=0,0,8,4",
        "--scale=1",
        f"--out={tmp_path / 'edited.png'}",
    )
    edited = np.asarray(Image.open(tmp_path / "edited.png").convert("RGB"))
    orange = (edited == (255, 165, 0)).all(-1)
    assert orange.sum() >= 40 * 32 - 16 * 12 and contents(workdir) == before


@pytest.mark.slow  # 45 s
def test_evaluation_writes_one_json(trained, cache, tmp_path):
    workdir, _ = trained
    before = contents(workdir)
    run_in_process(
        "evaluate",
        f"--workdir={workdir}",
        f"--cache={cache}",
        f"--out={tmp_path / 'r.json'}",
    )
    result = json.loads((tmp_path / "r.json").read_text())
    for split in ("seen_cells", "held_out_cells"):
        for row in ("generated", "ceiling"):
            assert set(result[split][row]) >= {
                "retrieval@1",
                "retrieval@5",
                "style_accuracy",
                "vgg_kid",
            }
    bound = result["bound"]["train"]
    assert bound["bits_per_token"] == pytest.approx(bound["nats_per_token"] / np.log(2))
    assert (
        0 < bound["bits_per_token"] < 60
    )  # an untrained model does not even know that tokens are mostly intact
    means = {"psnr", "ssim", "lpips", "lpips_alex"}
    assert set(result["reconstruction"]) == means | {"codes_in_use", "perplexity"} | {
        f"{name}_interval" for name in means
    }
    low, high = bound["bits_per_token_interval"]
    assert low < bound["bits_per_token"] < high and bound["draws"] == 1
    assert result["protocol"]["images"] == 8 and result["provenance"]["steps"] == {
        "vqvae": 6,
        "diffusion": 6,
    }
    assert (tmp_path / "r.png").exists() and contents(workdir) == before


def test_a_run_ends_with_its_report_and_the_command_writes_the_same(trained, tmp_path):
    workdir, printed = trained
    before = contents(workdir)
    assert (
        f"all of it on one page: {workdir}/report.html" in printed
        and "stays as it is" not in printed
    )
    run_in_process("report", f"--workdir={workdir}", f"--out={tmp_path / 'new' / 'page.html'}")
    page = (tmp_path / "new" / "page.html").read_text()
    assert page == (workdir / "report.html").read_text() and contents(workdir) == before
    assert re.findall(r'<section id="([\w-]+)"', page) == [
        "training-curves",
        "images",
        "codebook-use",
        "time-and-hardware",
        "configuration",
    ]
    codes = [np.load(path) for path in sorted((workdir / "vqvae").glob("codes-*.npy"))]
    assert [use.shape for use in codes] == [(32,)] * 2 and {use.sum() for use in codes} == {8 * 64}


@pytest.mark.slow
def test_a_folder_with_random_crops_trains(cache, tmp_path):
    folder = folder_of_emoji(tmp_path / "pictures", broken=0)
    done = train(
        tmp_path / "run",
        tmp_path / "cache",
        "--config.data.source=folder",
        f"--config.folder.path={folder}",
        "--config.data.transform=crop",
    )
    assert (tmp_path / "run" / "samples.png").exists() and "images: " in done.stdout


BAD = [
    (["sample", "--workdir=nowhere", "--prompt=x"], "there is no workdir nowhere"),
    (["sample", "--workdir={workdir}"], "--prompt is missing"),
    (["sample", "--workdir={workdir}", "--label=3"], "--label is for class models"),
    (["sample", "--workdir={workdir}", "--prompt= "], "a prompt is empty"),
    (
        ["sample", "--workdir={workdir}", "--prompt=" + "x" * 10_000],
        "a prompt has 10,000 characters",
    ),
    (
        ["sample", "--workdir={workdir}", "--prompt=x", "--calls=11"],
        "calls must be in 1..10, got 11",
    ),
    (["sample", "--workdir={workdir}", "--prompt=x", "--temperature=0"], "temperature positive"),
    (["sample", "--workdir={workdir}", "--prompt=x", "--num=0"], "--num=0"),
    (["sample", "--workdir={workdir}", "--prompt=x", "--sampler=best"], "--sampler=best"),
    (
        ["sample", "--workdir={workdir}", "--prompt=x", "--sampler=autoregressive"],
        "the sampler autoregressive is for autoregressive models",
    ),
    (
        ["sample", "--workdir={workdir}", "--prompt=x", "--stage=autoregressive"],
        "has no stage autoregressive, only diffusion",
    ),
    (
        ["sample", "--workdir={workdir}", "--prompt=x", "--option=order"],
        "--option takes NAME=VALUE",
    ),
    (
        ["explain", "--workdir={workdir}", "--prompt=x", "--option=self=1"],
        "no sampler has the option 'self'; known are counts, ",
    ),
    (
        ["sample", "--workdir={workdir}", "--prompt=x", "--option=order=halton"],
        "the sampler ancestral has no option 'order'",
    ),
    (
        ["sample", "--workdir={workdir}", "--prompt=x", "--sampler=counts", "--option=eta=1"],
        "only counts, noise, order, origin, polish",
    ),
    (
        ["sample", "--workdir={workdir}", "--prompt=x", "--sampler=counts", "--calls=65"],
        "calls must be in 1..64",
    ),
    (
        [
            "sample",
            "--workdir={workdir}",
            "--prompt=x",
            "--sampler=counts",
            "--option=counts=planned",
        ],
        "there is no plan for the order",
    ),
    (
        ["sample", "--workdir={workdir}", "--prompt=x", "--guidance=1", "--negative_prompt=y"],
        "a negative prompt acts through guidance",
    ),
    (["sample", "--workdir={workdir}", "--prompt=x AND  ", "--num=1"], "a prompt is empty"),
    (
        ["sample", "--workdir={workdir}", "--prompt=x", "--mask=m.png"],
        "--mask needs an image: give it with --init_image",
    ),
    (
        ["sample", "--workdir={workdir}", "--prompt=x", "--init_image=gone.png"],
        "there is no image gone.png",
    ),
    (["plan", "--workdir={workdir}", "--calls=65"], "a plan for 64 tokens has 1..64 calls, got 65"),
    (["plan", "--workdir=nowhere"], "there is no workdir nowhere"),
    (
        ["sample", "--workdir={workdir}", "--prompt=x", "--out={workdir}"],
        "is a folder: name a file",
    ),
    (["sample", "--workdir={workdir}", "--prompt=x", "--seed=-1"], "--seed=-1"),
    (["explain", "--workdir={workdir}"], "--prompt is missing"),
    (["explain", "--workdir={workdir}", "--prompt= "], "a prompt is empty"),
    (
        ["explain", "--workdir={workdir}", "--prompt=x", "--prompt=y"],
        "one image is explained at a time",
    ),
    (
        ["explain", "--workdir={workdir}", "--prompt=x", "--calls=11"],
        "calls must be in 1..10, got 11",
    ),
    (
        ["explain", "--workdir={workdir}", "--prompt=x", "--out={workdir}"],
        "--out={workdir} is a folder: name a file",
    ),
    (["report"], "--workdir is missing"),
    (["report", "--workdir=nowhere"], "there is no workdir nowhere"),
    (["report", "--workdir=tests"], "there is nothing to report in tests"),
    (["report", "--workdir={workdir}", "--out={workdir}"], "cannot write the report {workdir}"),
    (["sample", "--workdir={workdir}", "--like=gone.png"], "there is no image gone.png"),
    (
        ["sample", "--workdir={workdir}", "--like=README.md"],
        "README.md holds no generation request",
    ),
    (
        ["sample", "--workdir={workdir}", "--like=docs/plan.png"],
        "docs/plan.png holds no generation request",
    ),
    (
        ["sample", "--workdir={workdir}", "--like=x.png", "--seed=1", "--calls=2"],
        "takes everything from the file: leave out --seed",
    ),
    (
        ["sample", "--workdir={workdir}", "--like=x.png", "--prompt=x"],
        "takes everything from the file: leave out --prompt",
    ),
    (["demo", "--workdir=nowhere"], "there is no workdir nowhere"),
    (["demo", "--workdir=tests"], "there is no finished checkpoint"),
    (
        ["demo", "--workdir={workdir}", "--stage=autoregressive"],
        "has no stage autoregressive, only diffusion",
    ),
    (["demo", "--workdir={workdir}", "--adapter=gone.safetensors"], "gone.safetensors"),
    (["demo", "--workdir={workdir}", "--port=99999"], "--port=99999"),
    (["demo", "--workdir={workdir}", "stray"], "unexpected argument 'stray'"),
    (["sample", "--workdir={workdir}", "--prompt=x", "stray"], "unexpected argument 'stray'"),
    (["sample", "--workdir=tests", "--prompt=x"], "there is no finished checkpoint"),
    (["evaluate", "--workdir=nowhere"], "there is no workdir nowhere"),
    (["train"], "--config is missing"),
    (["train", "--config=configs/none.py"], "there is no config file configs/none.py"),
    (["train", "--config=configs/emoji.py:none"], "no variant 'none'"),
    (["train", "--config=configs/emoji.py", "--config.denoiser.lyers=2"], "no key 'lyers'"),
    (
        ["train", "--config=configs/emoji.py", "--config.data.source=none", "--workdir={tmp}"],
        "data.source must be one of",
    ),
    (
        [
            "train",
            "--config=configs/emoji.py",
            "--config.data.source=folder",
            "--config.folder.path={tmp}/none",
            "--workdir={tmp}",
        ],
        "there is no folder {tmp}/none",
    ),
    (
        [
            "train",
            "--config=configs/emoji.py",
            "--config.data.source=folder",
            "--config.folder.path={broken}",
            "--workdir={tmp}",
        ],
        "0.png",
    ),
    (
        [
            "train",
            "--config=configs/emoji.py",
            "--workdir={tmp}",
            "--config.stages=('diffusion',)",
            "--config.data.cache={cache}",
        ],
        "run the vqvae stage first",
    ),
    (
        [
            "train",
            "--config=configs/emoji.py",
            "--workdir={tmp}",
            "--config.denoiser.attention=some",
            "--config.data.cache={cache}",
        ],
        "denoiser.attention must be full, chunked, cudnn or splash, got 'some'",
    ),  # before the codec is trained
    (
        ["train", "--config=configs/emoji.py", "--workdir=s3://bucket/emoji"],
        "write a local folder or gs://BUCKET/FOLDER",
    ),
    (
        ["train", "--config=configs/emoji.py", "--workdir={tmp}", "--processes=2"],
        "--processes and --process need --coordinator=HOST:PORT",
    ),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return folder_of_emoji(tmp_path_factory.mktemp("broken") / "images", broken=2)


@pytest.mark.parametrize("command,sentence", BAD, ids=[" ".join(c)[:60] for c, _ in BAD])
def test_bad_input_gets_one_sentence(trained, cache, broken, tmp_path, command, sentence):
    names = {"workdir": trained[0], "tmp": tmp_path, "cache": cache, "broken": broken}
    fill = lambda text: text.format(**names) if "{" in text else text
    done = run_in_process(*map(fill, command), ok=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert fill(sentence) in done.stderr and "\nerror: " in f"\n{done.stderr}"


@pytest.mark.parametrize(
    "changed,sentence",
    [
        (
            ["--config.denoiser.layers=2", "--config.process.T=12"],
            "diffusion/checkpoints has other settings: process.T is 10 there and 12 here; "
            "denoiser.layers is 1 there and 2 here",
        ),
        (
            ["--config.codebook.codes=64"],
            "vqvae/checkpoints has other settings: codebook.codes is 32 there and 64 here",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_not_gone_on_with(trained, cache, changed, sentence):
    before = contents(trained[0])
    _, *arguments = training(trained[0], cache, *changed)
    done = run_in_process("train", *arguments, ok=False)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert contents(trained[0]) == before


def test_one_training_at_a_time_in_a_workdir(trained, cache):
    before = contents(trained[0])
    with (trained[0] / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _, *arguments = training(trained[0], cache)
        done = run_in_process("train", *arguments, ok=False)
    assert done.returncode == 2 and f"another process is training in {trained[0]}" in done.stderr
    assert contents(trained[0]) == before


@pytest.mark.slow  # 10 s of a whole start
def test_a_finished_run_is_skipped(trained, cache):
    """Also after another process held the lock, which goes with that process."""
    workdir, _ = trained
    before = contents(workdir / "diffusion" / "checkpoints")
    done = train(workdir, cache)
    for stage in ("vqvae", "diffusion"):
        assert f"{stage}: all 6 steps are done" in done.stdout
    assert contents(workdir / "diffusion" / "checkpoints") == before


@pytest.mark.slow  # 20 s; test_checkpoint has every damage
def test_a_truncated_checkpoint_is_named_and_the_one_before_it_is_used(trained, cache, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(trained[0], broken)

    def truncate(step):
        largest = max(
            (broken / "diffusion" / "checkpoints" / step / "weights").rglob("*"),
            key=lambda p: p.stat().st_size,
        )
        largest.write_bytes(largest.read_bytes()[:-10])

    truncate("6")
    done = run(
        "vqd_jax",
        "sample",
        f"--workdir={broken}",
        "--prompt=x",
        "--num=1",
        f"--out={tmp_path / 'x.png'}",
    )
    assert "checkpoint step 6" in done.stderr and "step 3 is used" in done.stderr
    done = train(broken, cache)
    assert "diffusion: 3 of 6 steps" in done.stdout and "step 3 is used" in done.stderr
    states = [
        Checkpoints(w / "diffusion" / "checkpoints", read_only=True).restore("state")
        for w in (trained[0], broken)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    truncate("6")
    truncate("3")
    done = run_in_process("sample", f"--workdir={broken}", "--prompt=x", ok=False)
    assert done.returncode == 2 and "is damaged" in done.stderr and "Traceback" not in done.stderr
