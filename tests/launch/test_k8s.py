"""launch/k8s.yaml: its numbers and names fit each other, and what its containers run is what
local.sh takes.
"""

import re

import pytest
import yaml

from helpers.launching import LAUNCH, PYTHON, ROOT, Shell, executable

CHECKED = {  # the fields of a JobSet that are used, as its schema and that of Kubernetes spell them
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"failurePolicy", "replicatedJobs"},
    "failurePolicy": {"maxRestarts"},
    "job": {"name", "replicas", "template"},
    "job spec": {"completionMode", "parallelism", "completions", "backoffLimit", "template"},
    "pod": {"restartPolicy", "containers", "volumes"},
    "container": {
        "name",
        "image",
        "workingDir",
        "command",
        "args",
        "env",
        "resources",
        "volumeMounts",
    },
}


@pytest.fixture
def parts():
    whole = yaml.safe_load((LAUNCH / "k8s.yaml").read_text())
    (job,) = whole["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return {
        "": whole,
        "spec": whole["spec"],
        "failurePolicy": whole["spec"]["failurePolicy"],
        "job": job,
        "job spec": job["template"]["spec"],
        "pod": pod,
        "container": container,
    }


def test_it_has_the_fields_of_a_jobset(parts):
    assert {name: set(part) for name, part in parts.items()} == CHECKED
    assert (parts[""]["apiVersion"], parts[""]["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert (
        parts["job spec"]["completionMode"] == "Indexed"
    )  # without it a pod has no number and no name
    assert (
        {m["name"] for m in parts["container"]["volumeMounts"]}
        == {v["name"] for v in parts["pod"]["volumes"]}
        == {"runs"}
    )


def test_its_processes_find_each_other(parts):
    flags = dict(a.removeprefix("--").split("=", 1) for a in parts["container"]["args"])
    name, job = parts[""]["metadata"]["name"], parts["job"]["name"]
    # JobSet names a pod SET-JOB-REPLICA-INDEX, in the domain SET
    assert re.fullmatch(rf"{name}-{job}-0-0\.{name}:\d+", flags["coordinator"])
    assert (
        int(flags["processes"])
        == parts["job spec"]["parallelism"]
        == parts["job spec"]["completions"]
    )
    (env,) = parts["container"]["env"]
    assert flags["process"] == f"$({env['name']})"
    assert (
        env["valueFrom"]["fieldRef"]["fieldPath"]
        == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    )
    (mount,) = parts["container"]["volumeMounts"]
    assert (
        flags["workdir"].startswith(mount["mountPath"] + "/") and (ROOT / flags["config"]).is_file()
    )


def test_its_command_is_one_of_local_sh(tmp_path, parts):
    shell = Shell(tmp_path)
    executable(shell.bin / "python", PYTHON)
    arguments = [a.replace("$(PROCESS)", "1") for a in parts["container"]["args"]]
    interpreter, script = parts["container"]["command"]
    shell(interpreter, ROOT / script, *arguments, ok=True)
    assert shell.arguments() == ["-m", "vqd_jax.main", *arguments]
    # of a drained node: a pod that fails, so that the JobSet starts all again
    done = shell(interpreter, ROOT / script, *arguments, BEHAVE="kill -TERM $$")
    assert done.returncode == 143 and parts["failurePolicy"]["maxRestarts"] > 0


def test_it_is_small():
    assert len((LAUNCH / "k8s.yaml").read_text().splitlines()) < 60
