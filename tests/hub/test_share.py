"""Sharing as a user does it, with a Hub on this machine: one commit out, the same bytes back.

An author with a token and somebody without one have a process each that forks for each command; who is offline, and
who draws from a Hub of the regular kind, starts Python anew.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from getpass import getuser
from pathlib import Path

import pytest
from hub.server import LoopbackHub, hub_environment, other_bytes
from warm import Warm

from vq_prior.core.disk.records import read_record

REPO = "somebody/digits"
SECRET = "hf_aSecretTokenOfSomebody"

SCRIPT = """
import sys
from vq_prior import VQPriorPipeline, VQVAE, CausalPrior
pipe = VQPriorPipeline.from_pretrained("somebody/digits")
for number, image in enumerate(pipe(num_images=12, seed=0).images):
    image.save(f"{sys.argv[1]}/{number:06d}.png")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
    assert hub.errors == []


@pytest.fixture(scope="module")
def author(server, tmp_path_factory, child_environment) -> Iterator[Warm]:
    """Somebody with a token."""
    folder = tmp_path_factory.mktemp("author")
    with Warm(child_environment(**hub_environment(server, folder / "cache", token=SECRET)), folder) as process:
        yield process


@pytest.fixture(scope="module")
def anyone(server, tmp_path_factory, child_environment) -> Iterator[Warm]:
    """Somebody without a token."""
    folder = tmp_path_factory.mktemp("anyone")
    with Warm(child_environment(**hub_environment(server, folder / "cache")), folder) as process:
        yield process


@pytest.fixture
def hub(server, author, anyone) -> Iterator[LoopbackHub]:
    """A Hub that takes every file inside the commit; neither it nor a cache has a memory of earlier tests."""
    server.reset()
    for person in (author, anyone):
        shutil.rmtree(person.folder / "cache", ignore_errors=True)
    yield server
    server.faults.clear()
    assert server.errors == []


@pytest.fixture
def lfs_hub(hub) -> LoopbackHub:
    """A Hub that wants binary files through git-lfs."""
    hub.store.upload_mode = "lfs"
    return hub


@pytest.fixture(params=["regular", "lfs"])  # of which a run of all tests draws one
def either_hub(request, hub) -> LoopbackHub:
    """A Hub of each kind in turn."""
    hub.store.upload_mode = request.param
    return hub


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*.png"))}


def run_python(code: str, *arguments: object, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.one_of
def test_a_model_is_one_commit_and_gives_the_same_bytes_anywhere(
    either_hub: LoopbackHub, author: Warm, anyone: Warm, tiny_model: Path, tmp_path: Path, run_cli
) -> None:
    hub = either_hub
    push = ["push", "--model", tiny_model, "--repo-id", REPO, "--license", "cc-by-4.0"]
    pushed = author.run(push)
    assert pushed.returncode == 0, pushed.stderr
    assert [commit.title for commit in hub.commits(REPO)] == ["initial commit", "Codec and prior by vq-prior"]
    files = hub.files(REPO)
    assert {"config.json", "README.md", "samples.png", "vqvae/model.safetensors", "prior/manifest.json"} <= files.keys()

    again = author.run(push)
    assert again.returncode == 0, again.stderr
    assert len(hub.commits(REPO)) == 2, "the same bytes make no second commit"

    local = tmp_path / "local"
    done = run_cli("generate", "--model", tiny_model, "--num-images", 12, "--seed", 0, "--out", local)
    assert done.returncode == 0, done.stderr
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    if hub.store.upload_mode == "regular":
        done = run_python(SCRIPT, drawn, env=anyone.environment)
    else:
        done = anyone.run(SCRIPT, arguments=[drawn])
    assert done.returncode == 0, done.stderr
    assert pictures(drawn) == pictures(local)
    assert len(pictures(drawn)) == 12

    hub.faults.clear()
    hub.fail("GET|HEAD", ".", status=503)
    drawn_offline = tmp_path / "offline"
    drawn_offline.mkdir()
    done = run_python(SCRIPT, drawn_offline, env=anyone.environment | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert pictures(drawn_offline) == pictures(local)


@pytest.mark.fault("F41")
def test_no_pushed_byte_names_the_machine_or_its_user(
    hub: LoopbackHub, author: Warm, tiny_run: Path, tmp_path: Path
) -> None:
    for command in (
        ("push", "--model", tiny_run / "model", "--repo-id", REPO),
        ("push", "--model", tiny_run / "vqvae", "--repo-id", "somebody/codec"),
        ("push-codes", tiny_run / "codes", "--repo-id", "somebody/codes"),
    ):
        done = author.run(command)
        assert done.returncode == 0, done.stderr
    sent = hub.uploaded_bytes()
    assert len(sent) > 100_000
    words = [SECRET, str(tiny_run), str(Path.home()), str(tmp_path), str(author.folder), getuser()]
    words += [os.environ.get("HOSTNAME", ""), socket.gethostname(), str(Path(__file__).parents[2]), "/tmp/"]
    found = [word for word in words if len(word) > 3 and word.encode() in sent]
    assert found == []


def test_the_card_tells_what_was_measured(hub: LoopbackHub, anyone: Warm, tiny_run: Path) -> None:
    done = anyone.run(["push", "--model", tiny_run / "model", "--repo-id", REPO, "--license", "cc-by-4.0"])
    assert done.returncode == 0, done.stderr
    card = hub.files(REPO)["README.md"].decode()
    codec, prior = read_record(tiny_run / "vqvae"), read_record(tiny_run / "prior")
    assert codec is not None
    assert prior is not None
    for word in (
        "library_name: vq-prior",
        "pipeline_tag: unconditional-image-generation",
        "license: cc-by-4.0",
        "model-index:",
        f"| {codec.measured['psnr']:.2f} |",
        f"| {prior.measured['nats_per_token']:.4f} |",
        f"{prior.measured['previous_token']:.4f} previous token",
        f'VQPriorPipeline.from_pretrained("{REPO}")',
        "vq-prior train-vqvae --data digits --out RUN",
        "vq-prior train-prior --codes CODES --out RUN --codec CODEC",
        "![samples",
        "| FID | not measured |",
    ):
        assert word in card, word

    import yaml

    head = yaml.safe_load(card.split("---")[1])
    metrics = {entry["type"]: entry["value"] for entry in head["model-index"][0]["results"][0]["metrics"]}
    assert metrics["psnr"] == pytest.approx(codec.measured["psnr"], abs=1e-6)
    assert metrics["nats_per_token"] == pytest.approx(prior.measured["nats_per_token"], abs=1e-6)


def test_a_card_that_a_person_wrote_is_kept(hub: LoopbackHub, anyone: Warm, tiny_model: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(tiny_model, mine)
    (mine / "README.md").write_text("# My digits\n")
    done = anyone.run(["push", "--model", mine, "--repo-id", REPO])
    assert done.returncode == 0, done.stderr
    assert hub.files(REPO)["README.md"] == b"# My digits\n"


COMPONENTS = """
import json, sys, torch
from vq_prior import VQVAE, CausalPrior, VQPriorPipeline
folder = sys.argv[1]
codec, prior = VQVAE.from_pretrained(folder), CausalPrior.from_pretrained(folder)
codec.push_to_hub("somebody/codec")
prior.push_to_hub("somebody/prior")
VQPriorPipeline.from_pretrained(folder).push_to_hub("somebody/whole", private=True)
there = VQVAE.from_pretrained("somebody/codec"), CausalPrior.from_pretrained("somebody/prior")
tokens = torch.zeros(2, prior.layout.num_tokens, dtype=torch.int64)
labels = torch.tensor([0, prior.null_label])
print(json.dumps({
    "codec": there[0].codec_id == codec.codec_id == prior.codec_id,
    "prior": torch.equal(there[1].log_probs(tokens, labels), prior.log_probs(tokens, labels)),
    "of a model": VQVAE.from_pretrained("somebody/whole").codec_id == codec.codec_id,
    "revision": VQVAE.from_pretrained("somebody/codec", revision="main").codec_id == codec.codec_id,
    "in the cache": VQVAE.from_pretrained("somebody/codec", local_files_only=True).codec_id == codec.codec_id,
}))
"""


def test_codec_and_prior_alone_go_and_come_by_themselves(hub: LoopbackHub, author: Warm, tiny_model: Path) -> None:
    done = author.run(COMPONENTS, arguments=[tiny_model])
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1]).values()) == {True}
    assert "model.safetensors" in hub.files("somebody/codec")
    assert "prior_config.json" in hub.files("somebody/prior")
    assert hub.repository("somebody/whole").private
    for repo, name in (
        ("somebody/codec", "training.json"),
        ("somebody/prior", "training.json"),
        ("somebody/whole", "prior/training.json"),
    ):
        assert name in hub.files(repo), "the record goes with weights that did not change"


def test_a_branch_and_a_pull_request(hub: LoopbackHub, anyone: Warm, tiny_model: Path, tmp_path: Path, run_cli) -> None:
    first = anyone.run(["push", "--model", tiny_model / "vqvae", "--repo-id", REPO])
    branch = anyone.run(["push", "--model", tiny_model, "--repo-id", REPO, "--revision", "next"])
    request = anyone.run(["push", "--model", tiny_model / "prior", "--repo-id", REPO, "--create-pr"])
    assert [first.returncode, branch.returncode, request.returncode] == [0, 0, 0], branch.stderr + request.stderr
    assert "prior/model.safetensors" not in hub.files(REPO)
    assert {"prior/model.safetensors", "vqvae/model.safetensors"} <= hub.files(REPO, "next").keys()
    assert "model.safetensors" not in hub.files(REPO, "next"), "what the former artefact had and this has not, goes"
    assert "prior_config.json" in hub.files(REPO, "refs/pr/1")
    pulled = anyone.run(["pull", f"{REPO}@next", "--out", tmp_path / "pulled"])
    assert pulled.returncode == 0, pulled.stderr
    checked = run_cli("verify", tmp_path / "pulled")
    assert checked.returncode == 0, checked.stderr


def test_codes_come_back_byte_for_byte_and_train_a_prior(
    lfs_hub: LoopbackHub, author: Warm, anyone: Warm, tiny_run: Path, tmp_path: Path, run_cli
) -> None:
    hub = lfs_hub
    done = author.run(["push-codes", tiny_run / "codes", "--repo-id", "somebody/codes"])
    assert done.returncode == 0, done.stderr
    files = hub.files("somebody/codes")
    assert {"codes.json", "README.md", "data/train-00000-of-00001.parquet"} <= files.keys()
    assert json.loads(files["codes.json"])["codec"]["id"] in files["README.md"].decode()

    words = ["train-prior", "--codes", "somebody/codes", "--out", "run", "--steps", 4, "--model.num-layers", 1]
    words += ["--model.hidden-size", 32]
    trained = anyone.run(words, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    for path in sorted((tiny_run / "codes").rglob("*")):
        if path.is_file():
            copy = tmp_path / "run" / "codes" / path.relative_to(tiny_run / "codes")
            assert copy.read_bytes() == path.read_bytes(), path.name
    again = run_cli(*words, cwd=tmp_path, env=anyone.environment | {"HF_HUB_OFFLINE": "1"})
    assert again.returncode == 0, again.stderr
    assert "is finished" in again.stdout


@pytest.mark.usefixtures("hub")
def test_the_data_set_opens_with_datasets(
    anyone: Warm, many_digits: Path, tiny_run: Path, tmp_path: Path, run_cli
) -> None:
    codes = tmp_path / "codes"
    made = run_cli("extract-codes", "--codec", tiny_run, "--data", many_digits, "--out", codes)
    assert made.returncode == 0, made.stderr
    done = anyone.run(["push-codes", codes, "--repo-id", "somebody/many"])
    assert done.returncode == 0, done.stderr
    code = """
import json, datasets, numpy as np
loaded = datasets.load_dataset("somebody/many")
train = loaded["train"].with_format("numpy")
names = loaded["train"].features["label"].names
print(json.dumps([len(train), len(loaded["validation"]), train[:5]["codes.0"].tolist(), names]))
"""
    from vq_prior.core.disk.code_store import CodeStore

    opened = run_python(code, env=anyone.environment)
    assert opened.returncode == 0, opened.stderr
    train = CodeStore.open(codes)
    rows, held_out, first, names = json.loads(opened.stdout.splitlines()[-1])
    assert (rows, held_out) == (len(train), len(CodeStore.open(codes, "validation")))
    assert first == train.rows(range(5))["codes.0"].tolist()
    assert names == list(train.index.label_names)


def test_codes_that_arrive_damaged_or_not_at_all_leave_nothing(
    lfs_hub: LoopbackHub, anyone: Warm, tiny_run: Path, tmp_path: Path
) -> None:
    done = anyone.run(["push-codes", tiny_run / "codes", "--repo-id", "somebody/codes"])
    assert done.returncode == 0, done.stderr
    words = ["train-prior", "--codes", "somebody/codes", "--out", tmp_path / "run", "--steps", 2]
    for what, code in (({"change": other_bytes}, 3), ({"cut_answer_after": 50, "times": None}, 5)):
        lfs_hub.fail("GET", "parquet", **what)
        done = anyone.run(words)
        lfs_hub.faults.clear()
        assert done.returncode == code, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stderr.startswith("error: ")
        assert not (tmp_path / "run").exists()
    done = anyone.run(words)
    assert done.returncode == 0, done.stderr
