"""What launch/tpu_worker.sh keeps in a bucket: whole checkpoints only, and never less than there
was.
"""

import pytest

from helpers.launching import clouded, executable

TRAIN = ["--", "--config=configs/emoji.py:gpu", "--workdir=gs://my-bucket/runs/emoji/"]
BUCKET, FOLDER = "gs://my-bucket/runs/emoji", "runs/my-bucket/runs/emoji"
STEPS = f"{FOLDER}/vqvae/checkpoints"


@pytest.fixture
def cloud(tmp_path):
    with clouded(tmp_path, 2) as made:
        made.pushed()
        yield made


def checkpoint(folder, step, content="whole", sums=True):
    directory = folder / "vqvae" / "checkpoints" / str(step)
    executable(directory / "weights" / "data", content)
    if sums:
        executable(directory / "sha256.json", f"sums of {content}")


def trained(cloud, behave="true", status=0):
    cloud.env["BEHAVE"] = behave
    cloud.tpu("start", *TRAIN, ok=True)
    cloud.tpu("logs", ok=status == 0)
    for number, home in enumerate(cloud.homes):
        assert (home / "vqd_jax.exit").read_text().split()[0] == str(status if number == 0 else 0)
    return (cloud.homes[0] / "vqd_jax.log").read_text()


def contents(folder):
    return {
        str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()
    }


def local(cloud, worker=0):
    return cloud.homes[worker] / "vqd_jax" / FOLDER


def stored(cloud):
    return cloud.cloud / "buckets" / "my-bucket" / "runs" / "emoji"


WRITES = (
    f"[[ $WORKER == 1 ]] && exit; mkdir -p {STEPS}/6/weights; echo new "
    f">{STEPS}/6/weights/data; echo sums >{STEPS}/6/sha256.json"
)


def test_sums_go_up_after_the_files_and_only_the_first_worker_stores_anything(cloud):
    unfinished = (
        f"cd {STEPS}; mkdir -p 9/weights 9.orbax-checkpoint-tmp; touch 9/weights/data "
        "9.orbax-checkpoint-tmp/x"
    )
    trained(
        cloud,
        f"[[ $* == *--workdir={FOLDER}\\ * ]] || exit 9; {WRITES}; echo log "
        f">{FOLDER}/metrics.jsonl; {unfinished}",
    )
    exclude = (
        r"--exclude=.*sha256\.json$,.*\.orbax-checkpoint-tmp.*,.*\.deleted/.*,.*\.replaced/.*,"
        r".*\.part$,.*\.part/.*"
    )
    assert cloud.storage() == [
        ["ls", f"{BUCKET}/**/sha256.json"],
        ["rsync", "--recursive", exclude, STEPS, f"{BUCKET}/vqvae/checkpoints"],
        ["cp", f"{STEPS}/6/sha256.json", f"{BUCKET}/vqvae/checkpoints/6/sha256.json"],
        ["ls", f"{BUCKET}/vqvae/checkpoints/"],
        ["rsync", "--recursive", r"--exclude=.*checkpoints/.*,.*\.part$", FOLDER, BUCKET],
    ]
    assert set(contents(stored(cloud))) == {
        "metrics.jsonl",
        *(f"vqvae/checkpoints/{f}" for f in ("6/sha256.json", "6/weights/data", "9/weights/data")),
    }


def test_an_upload_that_is_cut_leaves_the_earlier_checkpoint_and_no_new_sums(cloud):
    checkpoint(stored(cloud), 3)
    cloud.failing(["storage rsync.*orbax", 99, "the connection was closed"])
    assert "training ended with status 0, but the upload to" in trained(cloud, WRITES, status=2)
    assert contents(stored(cloud)) == {
        "vqvae/checkpoints/3/sha256.json": "sums of whole",
        "vqvae/checkpoints/3/weights/data": "whole",
    }


@pytest.mark.slow  # 3 s
def test_what_the_bucket_has_is_fetched_if_it_is_further(cloud):
    checkpoint(stored(cloud), 3)
    executable(stored(cloud) / "vqvae" / "metrics.jsonl", "of three")
    said = trained(cloud, f"[[ $WORKER == 1 ]] || cat {STEPS}/3/weights/data {STEPS}/3/sha256.json")
    assert f"downloading {BUCKET}" in said and "wholesums of whole" in said
    assert contents(local(cloud)) == contents(stored(cloud)) and not local(cloud, 1).exists()


@pytest.mark.slow  # 3 s
def test_a_folder_that_is_further_is_not_overwritten(cloud):
    checkpoint(stored(cloud), 3)
    executable(stored(cloud) / "vqvae" / "metrics.jsonl", "of three")
    for step in (10, 12):
        checkpoint(local(cloud), step, "own")
    executable(local(cloud) / "vqvae" / "metrics.jsonl", "of twelve")
    before = contents(local(cloud))
    assert "downloading" not in trained(cloud)
    assert contents(local(cloud)) == before == contents(stored(cloud))  # 3 is no longer kept


def test_later_checkpoints_in_the_bucket_are_never_removed(cloud):
    checkpoint(stored(cloud), 12, sums=False)  # of another upload, not yet whole
    checkpoint(stored(cloud), 3)
    checkpoint(local(cloud), 6)
    trained(cloud)
    assert {f.name for f in (stored(cloud) / "vqvae" / "checkpoints").iterdir()} == {"6", "12"}


def test_without_an_answer_from_the_bucket_nothing_is_trained_or_stored(cloud):
    checkpoint(stored(cloud), 3)
    before = contents(stored(cloud))
    cloud.failing(["storage ls", 99, "403: the service account has no access"])
    said = trained(cloud, f"[[ $WORKER == 1 ]] && exit; touch {FOLDER}/begun", status=2)
    assert (
        "403: the service account has no access" in said
        and "without it training would start over" in said
    )
    assert contents(stored(cloud)) == before and not local(cloud).exists()


def test_the_status_of_training_stays_what_it_was(cloud):
    trained(cloud, f"{WRITES}; exit 7", status=7)
    assert "vqvae/checkpoints/6/sha256.json" in contents(stored(cloud))
