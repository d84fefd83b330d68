"""Whatever the Hub does: one line, the documented exit code, a bounded number of requests, nothing half done."""

import hashlib
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.resident import Done, Resident
from hub.server import LoopbackHub, hub_environment, other_bytes
from warm import Warm

MAX_REQUESTS, MAX_WAIT_SECONDS = 60, 60
LISTING, WEIGHTS = "/api/models/owner/m", "/resolve/.*prior/model.safetensors"


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
    assert hub.errors == []


@pytest.fixture(scope="module")
def resident(server, tmp_path_factory, child_environment) -> Iterator[Resident]:
    environment = child_environment(**hub_environment(server, tmp_path_factory.mktemp("cache")))
    with Resident(environment) as process:
        yield process


@pytest.fixture
def hub(server, new_files) -> Iterator[LoopbackHub]:
    """The server with one repository, `owner/m`, and no memory of earlier tests."""
    server.store.repositories.clear()
    server.add_repo("owner/m", new_files)
    server.requests.clear()
    server.faults.clear()
    yield server
    server.faults.clear()


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def new_files(tiny_model) -> dict[str, bytes]:
    return files_of(tiny_model)


@pytest.fixture(scope="module")
def old_files(new_files) -> dict[str, bytes]:
    """An older state of the repository: another card."""
    return new_files | {"README.md": b"# An older card\n"}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def assert_one_line(done: Done, code: int, message: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert (done.code, len(lines)) == (code, 1), done
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert lines[0].isprintable()
    assert "Traceback" not in done.stdout + done.stderr
    assert done.waited <= MAX_WAIT_SECONDS


# name: (method, path, what goes wrong, exit code, what the line says)
PULLS: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "no token": ("GET", LISTING, {"status": 401}, 3, "refused access .*log in"),
    "no access": ("GET", LISTING, {"status": 403}, 3, "refused access .*log in"),
    "no repository": ("GET", LISTING, {"status": 404, "error_code": "RepoNotFound"}, 3, "does not exist"),
    "gated": ("HEAD", "/resolve/", {"status": 403, "error_code": "GatedRepo"}, 3, "is gated"),
    "a file is gone": ("HEAD", "manifest", {"status": 404, "error_code": "EntryNotFound"}, 3, "missing on the Hub"),
    "refused": ("GET", LISTING, {"status": 400, "message": "a \x1b[31mred b\r\nX: y"[:10]}, 3, "refused the request"),
    "busy": ("GET", LISTING, {"status": 429}, 5, "too many requests"),
    "busy, says when": ("GET", LISTING, {"status": 429, "retry_after": 2}, 5, "too many requests"),
    "busy for an hour": ("GET", LISTING, {"status": 429, "retry_after": 3600}, 5, "no more requests for 3600 s"),
    "busy with files": ("HEAD", "/resolve/", {"status": 429}, 5, "too many requests"),
    "busy with files for an hour": ("HEAD", WEIGHTS, {"status": 429, "retry_after": 3600}, 5, "for 3600 seconds"),
    "busy with bytes": ("GET", WEIGHTS, {"status": 429, "retry_after": 1}, 5, "too many requests"),
    "broken": ("GET", LISTING, {"status": 500}, 5, "error 500"),
    "away": ("GET", LISTING, {"status": 503}, 5, "error 503"),
    "files broken": ("HEAD", "/resolve/", {"status": 500}, 5, "error 500"),
    "files away": ("HEAD", "/resolve/", {"status": 503}, 5, "error 503"),
    "bytes away": ("GET", WEIGHTS, {"status": 503}, 5, "error 503"),
    "not JSON": ("GET", LISTING, {"change": lambda _: b"<html>Sign in to the airport</html>"}, 5, "did not answer"),
    "no commit": ("GET", LISTING, {"change": lambda _: b'{"id": "owner/m"}'}, 3, "names no commit"),
    "listing cut": ("GET", LISTING, {"cut_answer_after": 0}, 5, "check the network"),
    "listing cut inside": ("GET", LISTING, {"cut_answer_after": 50}, 5, "check the network"),
    "head cut": ("HEAD", "/resolve/", {"cut_answer_after": 0}, 5, "check the network"),
    **{
        f"weights cut after {n}": ("GET", WEIGHTS, {"cut_answer_after": n}, 5, "check the network")
        for n in (0, 1, 1000, 200_000)
    },
    "config cut": ("GET", "/resolve/[^/]*/config.json", {"cut_answer_after": 7}, 5, "check the network"),
    "bytes missing": ("GET", WEIGHTS, {"size_off_by": -100}, 3, "another size than announced"),
    "bytes promised": ("GET", WEIGHTS, {"size_off_by": 100}, 5, "check the network"),
    "larger than announced": ("HEAD", WEIGHTS, {"size_off_by": -7}, 3, "another size than announced"),
    "smaller than announced": ("HEAD", WEIGHTS, {"size_off_by": 7}, 3, "another size than announced"),
    **{
        f"other bytes of {name}": ("GET", f"/resolve/[^/]*/{name}", {"change": other_bytes}, 3, "")
        for name in (
            "config.json",
            "vqvae/model.safetensors",
            "vqvae/config.json",
            "vqvae/manifest.json",
            "prior/model.safetensors",
            "prior/prior_config.json",
            "prior/generation_config.json",
        )
    },
}


@pytest.mark.parametrize("name", PULLS)
@pytest.mark.fault("F6", "F40")
def test_a_pull_that_fails_leaves_what_was_there_and_succeeds_afterwards(
    hub, resident, tmp_path, new_files, old_files, name
):
    method, path, what, code, message = PULLS[name]
    cache, parent = tmp_path / "cache", tmp_path / "parent"
    parent.mkdir()
    fault = hub.fail(method, path, times=None, **what)
    assert_one_line(resident.run("pull", "owner/m", "--out", parent / "model", cache=cache), code, message)
    assert fault.struck >= 1
    assert len(hub.requests) <= MAX_REQUESTS
    assert list(parent.iterdir()) == []
    old = write(parent / "model", old_files)
    done = resident.run("pull", "owner/m", "--out", old, "--overwrite", cache=cache)
    assert_one_line(done, code, message)
    assert list(parent.iterdir()) == [old]
    assert files_of(old) == old_files
    hub.faults.clear()
    done = resident.run("pull", "owner/m", "--out", old, "--overwrite", cache=cache)
    assert (done.code, done.stderr) == (0, "")
    assert files_of(old) == new_files


@pytest.mark.parametrize("repo_id", ["owner", "a/b/c", "owner/a b", "owner/a--b", "owner/m@", "../m", "owner/m@a/../b"])
def test_a_malformed_id_is_a_wrong_value(hub, resident, tmp_path, repo_id):
    assert_one_line(resident.run("pull", repo_id, "--out", tmp_path / "model"), 2, "is no Hub id; write owner/name")
    assert hub.requests == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("revision", ["none", "refs/pr/9", "0" * 40])
def test_a_revision_that_does_not_exist_is_named(hub, resident, tmp_path, revision):
    done = resident.run("pull", f"owner/m@{revision}", "--out", tmp_path / "model")
    assert_one_line(done, 3, f"owner/m@{revision}: the Hub has no such revision")
    assert len(hub.requests) <= 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "path", "what"),
    [
        ("GET", LISTING, {"status": 503}),
        ("GET", LISTING, {"cut_answer_after": 20}),
        ("HEAD", WEIGHTS, {"status": 503}),
        ("HEAD", WEIGHTS, {"cut_answer_after": 0}),
        ("GET", WEIGHTS, {"cut_answer_after": 1_000_000}),
        ("GET", WEIGHTS, {"status": 429, "retry_after": 1}),
    ],
)
@pytest.mark.fault("F40")
def test_what_passes_is_waited_for(hub, resident, tmp_path, new_files, method, path, what):
    fault = hub.fail(method, path, **what)
    done = resident.run("pull", "owner/m", "--out", tmp_path / "model", cache=tmp_path / "cache")
    assert (done.code, done.stderr, fault.struck) == (0, "", 1)
    assert files_of(tmp_path / "model") == new_files


@pytest.mark.fault("F39")
def test_a_pull_is_the_commit_that_was_resolved_first(hub, resident, tmp_path, new_files):
    other = {name: other_bytes(content) for name, content in new_files.items()}
    hub.fail("HEAD", "prior/model.safetensors", before=lambda: hub.commit("owner/m", other))
    done = resident.run("pull", "owner/m", "--out", tmp_path / "model", cache=tmp_path / "cache")
    assert (done.code, done.stderr) == (0, "")
    assert len(hub.commits("owner/m")) == 2
    assert files_of(tmp_path / "model") == new_files


GENERATES = ("no token", "no repository", "busy for an hour", "away", "other bytes of config.json", "files away")
GENERATES += ("other bytes of prior/model.safetensors", "weights cut after 1000", "larger than announced")


@pytest.mark.parametrize("name", GENERATES)
@pytest.mark.fault("F40")
def test_a_generate_by_id_that_fails_leaves_nothing_and_succeeds_afterwards(hub, resident, tmp_path, name):
    method, path, what, code, message = PULLS[name]
    parent = tmp_path / "parent"
    parent.mkdir()
    words = ("generate", "--model", "owner/m", "--num-images", 2, "--out", parent / "images")
    hub.fail(method, path, times=None, **what)
    assert_one_line(resident.run(*words, cache=tmp_path / "cache"), code, message)
    assert list(parent.iterdir()) == []
    hub.faults.clear()
    done = resident.run(*words, cache=tmp_path / "cache")
    assert (done.code, len(list((parent / "images").glob("0*.png")))) == (0, 2), done


def test_a_repository_without_weights_is_an_artefact_that_lacks_something(hub, resident, tmp_path):
    hub.commit("owner/m", {}, delete=["prior/model.safetensors"])
    words = ("generate", "--model", "owner/m", "--num-images", 1, "--out", tmp_path / "images")
    assert_one_line(resident.run(*words, cache=tmp_path / "cache"), 3, "model.safetensors")
    assert not (tmp_path / "images").exists()


# name: (method, path, what goes wrong, exit code, what the line says)
COMMIT = "/owner/c/commit/"
PUSHES: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "no token": ("POST", COMMIT, {"status": 401}, 3, "refused access .*log in"),
    "no access": ("POST", COMMIT, {"status": 403}, 3, "refused access .*log in"),
    "create broken": ("POST", "/repos/create", {"status": 500}, 5, "error 500"),
    "create cut": ("POST", "/repos/create", {"cut_answer_after": 0}, 5, "check the network"),
    "listing away": ("GET", "/api/models/owner/c", {"status": 503}, 5, "error 503"),
    "preparation refused": ("POST", "/preupload/", {"status": 403}, 3, "refused access"),
    "preparation broken": ("POST", "/preupload/", {"status": 500}, 5, "error 500"),
    "preparation cut": ("POST", "/preupload/", {"cut_upload_after": 3}, 5, "check the network"),
    "busy": ("POST", COMMIT, {"status": 429}, 5, "too many requests"),
    "busy for an hour": ("POST", COMMIT, {"status": 429, "retry_after": 3600}, 5, "for 3600 seconds"),
    "broken": ("POST", COMMIT, {"status": 500}, 5, "error 500"),
    "away": ("POST", COMMIT, {"status": 503}, 5, "error 503"),
    "invalid": ("POST", COMMIT, {"status": 400}, 3, "refused the request"),
    **{
        f"cut after {n}": ("POST", COMMIT, {"cut_upload_after": n}, 5, "check the network")
        for n in (0, 1, 100, 5_000, 100_000, 300_000)
    },
}


@pytest.mark.parametrize("name", PUSHES)
@pytest.mark.fault("F6", "F40")
def test_a_push_that_fails_changes_nothing_and_succeeds_afterwards(hub, resident, tiny_model, name):
    method, path, what, code, message = PUSHES[name]
    hub.add_repo("owner/c", {"config.json": b"{}", "mine.txt": b"kept"})
    before = hub.commits("owner/c")
    words = ("push", "--model", tiny_model / "vqvae", "--repo-id", "owner/c")
    fault = hub.fail(method, path, times=None, **what)
    assert_one_line(resident.run(*words), code, message)
    assert fault.struck >= 1
    assert len(hub.requests) <= MAX_REQUESTS
    assert hub.commits("owner/c") == before
    hub.faults.clear()
    done = resident.run(*words)
    assert (done.code, done.stderr, len(hub.commits("owner/c"))) == (0, "", 2), done
    pushed = hub.files("owner/c")
    assert pushed["mine.txt"] == b"kept"
    assert pushed["model.safetensors"] == (tiny_model / "vqvae/model.safetensors").read_bytes()


def test_a_repository_that_may_not_be_made_is_not(hub, resident, tiny_model):
    hub.fail("POST", "/repos/create", times=None, status=403)
    done = resident.run("push", "--model", tiny_model / "vqvae", "--repo-id", "owner/c")
    assert_one_line(done, 3, "owner/c.* log in")
    assert len(hub.requests) <= 6


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ({"status": 403}, 3, "refused access"),
        ({"status": 500}, 5, "error 500"),
        ({"status": 503}, 5, "error 503"),
        *(({"cut_upload_after": n}, 5, "check the network") for n in (0, 1000, 200_000)),
    ],
)
def test_a_large_file_that_does_not_arrive_ends_the_push(hub, resident, tiny_model, what, code, message):
    hub.add_repo("owner/c")
    hub.store.upload_mode = "lfs"
    hub.store.large_files.clear()
    hub.fail("PUT", "/upload", times=None, **what)
    words = ("push", "--model", tiny_model / "vqvae", "--repo-id", "owner/c")
    try:
        assert_one_line(resident.run(*words), code, message)
        assert len(hub.requests) <= MAX_REQUESTS
        assert len(hub.commits("owner/c")) == 1
        hub.faults.clear()
        done = resident.run(*words)
    finally:
        hub.store.upload_mode = "regular"
    assert (done.code, done.stderr, len(hub.commits("owner/c"))) == (0, "", 2)


def known(hub: LoopbackHub, folder: Path) -> None:
    """Give the server the bytes of a folder: what hf_xet sends, it does not put together."""
    hub.store.large_files |= {hashlib.sha256(content).hexdigest(): content for content in files_of(folder).values()}


@pytest.fixture(params=["by hf_xet", "without hf_xet"])
def writer(request, hub, resident) -> Iterator[Resident]:
    """Somebody with a token, whose large files go by hf_xet or not, to a server that wants them apart."""
    hub.store.upload_mode = "lfs"
    hub.store.large_files.clear()
    resident.xet(request.param == "by hf_xet")
    resident.log_in("hf_mine")
    yield resident
    resident.log_in(None)
    resident.xet(False)
    hub.store.upload_mode = "regular"


READER = b'{"type": "user", "name": "tester", "auth": {"accessToken": {"displayName": "laptop", "role": "read"}}}'
SOMEBODY = b'{"type": "user", "name": "tester", "auth": {"type": "oauth"}}'
WHO, MAY_WRITE = "/api/whoami-v2", "/api/models/owner/c/auth-check/write"

# name: (method, path, what goes wrong, exit code, what the line says)
REFUSED: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "an unknown token": ("GET", WHO, {"status": 401}, 3, "does not know your token .*log in"),
    "a token that may only read": ("GET", WHO, {"change": lambda _: READER}, 3, "may only read .laptop of tester"),
    "no right to write": ("GET", MAY_WRITE, {"status": 403}, 3, "takes you for tester, who may not write"),
    "who is away": ("GET", WHO, {"status": 503}, 5, "error 503"),
    "who is cut": ("GET", WHO, {"cut_answer_after": 0}, 5, "check the network"),
    "may is away": ("GET", MAY_WRITE, {"status": 503}, 5, "error 503"),
    "gone meanwhile": ("GET", MAY_WRITE, {"status": 404, "error_code": "RepoNotFound"}, 3, "does not exist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_who_may_not_write_is_told_so_before_anything_is_sent(hub, writer, tiny_model, name):
    method, path, what, code, message = REFUSED[name]
    hub.add_repo("owner/c", {"mine.txt": b"kept"})
    known(hub, tiny_model / "vqvae")
    words = ("push", "--model", tiny_model / "vqvae", "--repo-id", "owner/c")
    fault = hub.fail(method, path, times=None, **what)
    assert_one_line(writer.run(*words), code, message)
    assert fault.struck >= 1
    sent = [request.path for request in hub.requests if request.method != "GET"]
    assert set(sent) <= {"/api/repos/create"}
    hub.faults.clear()
    done = writer.run(*words)
    assert (done.code, done.stderr, len(hub.commits("owner/c"))) == (0, "", 2), done
    assert hub.files("owner/c")["model.safetensors"] == (tiny_model / "vqvae/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("path", "what"),
    [
        (WHO, {"status": 429}),  # asked too often: no reason not to send
        (WHO, {"status": 404}),  # a Hub of one's own that knows no such question
        (WHO, {"change": lambda _: SOMEBODY}),
        (WHO, {"change": lambda _: b"{}"}),
        (MAY_WRITE, {"status": 404}),
    ],
)
def test_a_hub_that_does_not_tell_is_written_to(hub, writer, tiny_model, path, what):
    hub.add_repo("owner/c")
    known(hub, tiny_model / "prior")
    hub.fail("GET", path, times=None, **what)
    done = writer.run("push", "--model", tiny_model / "prior", "--repo-id", "owner/c")
    assert (done.code, done.stderr, len(hub.commits("owner/c"))) == (0, "", 2), done


def test_a_pull_request_asks_for_no_right_to_write(hub, writer, tiny_model):
    hub.add_repo("owner/c")
    known(hub, tiny_model / "prior")
    hub.fail("GET", "/auth-check/write", times=None, status=403)
    done = writer.run("push", "--model", tiny_model / "prior", "--repo-id", "owner/c", "--create-pr")
    assert (done.code, done.stderr) == (0, ""), done
    assert "prior_config.json" in hub.files("owner/c", "refs/pr/1")


@pytest.mark.parametrize(("status", "code", "message"), [(401, 3, "refused access"), (403, 3, "refused access")])
def test_a_refusal_that_hf_xet_meets_is_no_broken_network(hub, writer, tiny_model, status, code, message):
    """It is a ConnectionError of Python without an answer in it; only its words hold the status."""
    hub.add_repo("owner/c")
    fault = hub.fail("GET|POST", "/xet-write-token/|/info/lfs/", times=None, status=status)
    done = writer.run("push", "--model", tiny_model / "prior", "--repo-id", "owner/c")
    assert_one_line(done, code, message)
    assert fault.struck >= 1
    assert len(hub.commits("owner/c")) == 1


def test_a_push_whose_answer_was_lost_looks_whether_it_arrived(hub, resident, tiny_model):
    hub.add_repo("owner/c")
    hub.fail("POST", COMMIT, cut_answer_after=0)
    done = resident.run("push", "--model", tiny_model / "vqvae", "--repo-id", "owner/c")
    assert (done.code, done.stderr) == (0, "")
    assert "owner/c" in done.stdout
    assert len(hub.commits("owner/c")) == 2


@pytest.mark.parametrize("what", [{}, {"cut_upload_after": 100}, {"status": 500}])
@pytest.mark.fault("F39")
def test_a_push_does_not_overwrite_what_another_pushed_meanwhile(hub, resident, tiny_model, what):
    """Also if the other's files have the same names and sizes, as those of a second training have."""
    assert resident.run("push", "--model", tiny_model / "vqvae", "--repo-id", "owner/c").code == 0
    theirs = {name: other_bytes(content) for name, content in hub.files("owner/c").items()}
    hub.repository("owner/c").point("main", hub.commits("owner/c")[0].sha)
    hub.fail("POST", COMMIT, before=lambda: hub.commit("owner/c", theirs), **what)
    done = resident.run("push", "--model", tiny_model / "vqvae", "--repo-id", "owner/c")
    assert_one_line(done, 5, "run it again")
    assert {name: hub.files("owner/c")[name] for name in theirs} == theirs


@pytest.mark.fault("F6")
def test_a_connection_that_drops_anywhere_changes_nothing(hub, resident, tmp_path, tiny_model, new_files, faults):
    """After any number of bytes of a file, coming or going: nothing half there, and the next try completes it."""
    cuts = faults.number(2, 50)
    names = [name for name, content in new_files.items() if name.endswith(".safetensors") and len(content) > 1]
    for number in range(cuts):
        out, cache = tmp_path / f"p{number}" / "model", tmp_path / f"p{number}" / "cache"
        out.parent.mkdir()
        name = faults.rng.choice(names)
        after = faults.rng.randrange(len(new_files[name]))
        hub.fail("GET", f"/resolve/.*{name}", times=None, cut_answer_after=after)
        done = resident.run("pull", "owner/m", "--out", out, cache=cache)
        assert_one_line(done, 5, "check the network")
        assert not out.exists()
        hub.faults.clear()
        done = resident.run("pull", "owner/m", "--out", out, cache=cache)
        assert (done.code, done.stderr) == (0, ""), f"{name} cut after {after} bytes"
        assert files_of(out) == new_files
    words = ("push", "--model", tiny_model / "vqvae", "--repo-id", "owner/c")
    sent = sum(map(len, files_of(tiny_model / "vqvae").values()))
    for _ in range(cuts):
        hub.add_repo("owner/c", {"config.json": b"{}"})
        before = hub.commits("owner/c")
        hub.fail("POST", COMMIT, times=None, cut_upload_after=faults.rng.randrange(sent))
        assert_one_line(resident.run(*words), 5, "check the network")
        assert hub.commits("owner/c") == before
        hub.faults.clear()
        assert (resident.run(*words).code, len(hub.commits("owner/c"))) == (0, 2)
    faults.planted(2 * cuts)


def digest(files: dict[str, bytes]) -> str:
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


@pytest.mark.one_of("killed on the way")
@pytest.mark.usefixtures("hub")
@pytest.mark.fault("F6")
def test_a_killed_pull_leaves_the_old_or_the_new_and_a_rerun_completes(resident, tmp_path, new_files, old_files):
    timing = resident.run("pull", "owner/m", "--out", tmp_path / "timing", cache=tmp_path / "c0").seconds
    generator, interrupted = random.Random(0), 0
    for number in range(12):
        out, cache = tmp_path / f"p{number}" / "model", tmp_path / f"p{number}" / "cache"
        out.parent.mkdir()
        allowed = {digest(new_files), "absent"}
        if number % 2:
            allowed = {digest(new_files), digest(old_files)}
            write(out, old_files)
        words = ("pull", "owner/m", "--out", out, "--overwrite")
        interrupted += resident.kill(*words, after=timing * generator.uniform(0.02, 1.2), cache=cache)
        state = digest(files_of(out)) if out.exists() else "absent"
        assert state in allowed
        assert {path.name for path in out.parent.iterdir() if not path.name.startswith(".")} <= {"model", "cache"}
        done = resident.run(*words, cache=cache)
        assert (done.code, done.stderr) == (0, "")
        assert files_of(out) == new_files
    assert interrupted >= 4


@pytest.mark.one_of("killed on the way")
@pytest.mark.fault("F6")
def test_a_killed_push_leaves_the_old_or_the_new_and_a_rerun_completes(hub, resident, tiny_model):
    words = ("push", "--model", tiny_model / "vqvae", "--repo-id", "owner/c")
    timing = resident.run(*words).seconds
    new, generator, interrupted = hub.files("owner/c"), random.Random(1), 0
    for _ in range(12):
        hub.add_repo("owner/c", {"config.json": b"{}", ".gitattributes": new[".gitattributes"]})
        old = hub.files("owner/c")
        interrupted += resident.kill(*words, after=timing * generator.uniform(0.02, 1.2))
        assert hub.files("owner/c") in (old, new)
        done = resident.run(*words)
        assert (done.code, done.stderr) == (0, "")
        assert hub.files("owner/c") == new
    assert interrupted >= 4


@pytest.mark.one_of("in processes of their own")
@pytest.mark.fault("F40")
def test_without_a_network_the_cached_copy_does(new_files, tmp_path, child_environment):
    with LoopbackHub() as hub, Resident(child_environment(**hub_environment(hub, tmp_path / "cache"))) as resident:
        hub.add_repo("owner/m", new_files)

        def draw(model: str, number: int) -> Done:
            return resident.run("generate", "--model", model, "--num-images", 1, "--out", tmp_path / str(number))

        assert draw("owner/m", 0).code == 0
        hub.fail(".*", "", times=None, cut_answer_after=0)  # on the connection that is open still
        hub.__exit__()  # nobody listens any more
        done = draw("owner/m", 1)
        assert (done.code, done.waited <= MAX_WAIT_SECONDS) == (0, True), done
        assert "taking the copy of owner/m in the cache" in done.stdout
        assert_one_line(draw("owner/other", 2), 5, "check the network")
        assert resident.load("owner/m", local_files_only=True).code == 0
        absent = resident.load("owner/other", local_files_only=True)
        assert absent.code == 3
        assert "in the cache" in absent.stderr
        resident.offline(True)
        assert draw("owner/m", 3).code == 0
        assert_one_line(draw("owner/other", 4), 3, "fetch it once with a network")
        hub.__enter__()
    images = [(tmp_path / str(number) / "000000.png").read_bytes() for number in (0, 1, 3)]
    assert images[0] == images[1] == images[2]
    assert not any((tmp_path / str(number)).exists() for number in (2, 4))


# The same through processes of their own, forked or new: what libraries print, what a real wait costs.


def error_of(done: Any) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.one_of("in processes of their own")
def test_the_command_line_says_it_in_one_line(lfs_hub, run_cli, child_environment, new_files, tmp_path):
    lfs_hub.add_repo("owner/m", new_files)
    environment = hub_environment(lfs_hub, tmp_path / "cache")
    words = ("pull", "owner/m", "--out", tmp_path / "model")
    with Warm(child_environment(**environment), tmp_path) as warm:
        lfs_hub.fail("GET", WEIGHTS, times=None, cut_answer_after=1000)
        done = warm.run(words)
        assert (done.returncode, "check the network" in error_of(done)) == (5, True)
        lfs_hub.faults.clear()
        lfs_hub.fail("GET", "vqvae/config.json", change=other_bytes)
        done = warm.run(words)
        assert (done.returncode, "vqvae/config.json is damaged" in error_of(done)) == (3, True)
        assert not (tmp_path / "model").exists()
        assert warm.run(words).returncode == 0
        done = warm.run(["generate", "--model", "owner/n", "--out", tmp_path / "images"])
        assert (done.returncode, "owner/n does not exist" in error_of(done)) == (3, True)
    words = ("generate", "--model", "owner/m", "--num-images", 1, "--out", tmp_path / "images")
    done = run_cli(*words, env=environment | {"HF_HUB_OFFLINE": "1"})
    assert (done.returncode, (tmp_path / "images/000000.png").is_file()) == (0, True), done.stderr


@pytest.mark.one_of("in processes of their own")
@pytest.mark.fault("F40")
def test_a_wrong_token_is_refused_before_anything_is_made(run_cli, tiny_model, tmp_path):
    with LoopbackHub(require_token="secret") as hub:
        environment = hub_environment(hub, tmp_path / "cache", token="hf_other")
        done = run_cli("push", "--model", tiny_model / "vqvae", "--repo-id", "owner/c", env=environment)
        assert (done.returncode, "log in" in error_of(done)) == (3, True)
        assert hub.store.repositories == {}
        assert len(hub.requests) <= 3
