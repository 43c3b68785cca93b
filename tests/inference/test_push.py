"""A model goes to the hub and comes back, by the hub's own client and a stand-in for its server."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from helpers import ROOT
from helpers.commands import run_in_process
from helpers.hub_server import hub
from helpers.workdirs import MODELS, make_workdir
from vqd_jax.inference import pipeline
from vqd_jax.inference.loading import HUB_FILE

REPOSITORY = "someone/small-emoji"
RESULTS = {
    "seen": {"generated": {"retrieval@1": 0.75, "retrieval@1_interval": [0.5, 0.9], "x": 1.0}},
    "held_out": {"generated": {"retrieval@1": 0.25, "retrieval@1_interval": [0.1, 0.4]}},
    "protocol": {"name": "emoji"},
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = make_workdir(tmp_path_factory.mktemp("push") / "model", MODELS["text"], plan=True)
    (folder / "README.md").write_text("# Small emoji\n\nDraws emoji.\n")
    return folder


def client(server, *command):
    """A process whose hub is the stand-in; the client reads these settings when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": "hf_token",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(server.home),
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment
    )


def test_there_and_back(workdir, tmp_path):
    """The model that is loaded from the hub is the one of the workdir; a card that is there stays."""
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    push = (
        *("-m", "vqd_jax", "export", f"--workdir={workdir}", f"--push={REPOSITORY}"),
        *(f"--results={tmp_path / 'results.json'}", "--license=cc-by-sa-4.0"),
    )
    with hub() as server:
        server.home = tmp_path / "home"
        done = client(server, *push)
        assert done.returncode == 0, done.stderr
        assert f"{server.url}/{REPOSITORY} (vqvae step " in done.stdout
        files = server.repositories[REPOSITORY]
        assert {*files} == {"README.md", HUB_FILE}
        _, header, body = files["README.md"].decode().split("---\n", 2)
        header = yaml.safe_load(header)
        assert (header["license"], header["library_name"]) == ("cc-by-sa-4.0", "vqd_jax")
        assert header["pipeline_tag"] == "text-to-image"
        (index,) = header["model-index"]
        told = {
            (result["dataset"]["split"], measure["type"]): measure["value"]
            for result in index["results"]
            for measure in result["metrics"]
        }
        assert told == {("seen", "retrieval@1"): 0.75, ("held_out", "retrieval@1"): 0.25}
        assert body.strip().startswith("# Small emoji") and f"hf://{REPOSITORY}" in body
        script = f"import vqd_jax; print(vqd_jax.load('hf://{REPOSITORY}').digest)"
        loaded = client(server, "-c", script)
        assert loaded.returncode == 0, loaded.stderr
        assert loaded.stdout.split()[-1] == pipeline.load(workdir).digest
        files["README.md"] = b"mine"
        again = client(server, *push)
        assert "its model card stays as it was" in again.stdout and files["README.md"] == b"mine"
        server.refused = True
        refused = client(server, *push)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert "could not be uploaded to the Hugging Face hub" in refused.stderr
        assert "hf auth login" in refused.stderr


@pytest.mark.parametrize(
    "flags,sentence",
    [
        (["--push=emoji"], "--push takes OWNER/NAME, got 'emoji'"),
        (["--push=a/b", "--out=x.safetensors"], "leave out --out and --format"),
        (["--license=mit"], "--license needs a repository: give it with --push"),
        (["--push=a/b", "--results=gone.json"], "gone.json"),
    ],
)
def test_wrong_flags_are_one_sentence(workdir, flags, sentence):
    done = run_in_process("export", f"--workdir={workdir}", *flags, ok=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and sentence in done.stderr
