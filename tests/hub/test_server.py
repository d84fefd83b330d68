"""The loopback Hub is a Hub to the real clients: huggingface_hub pushes and pulls, datasets loads, faults surface."""

import hashlib
import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub.server import LoopbackHub, hub_environment, other_bytes

BIG = bytes(range(256)) * 400  # 100 KiB, binary
CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"
PRELUDE = """
import json
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
BIG = bytes(range(256)) * 400
CARD = b"---\\nlicense: apache-2.0\\n---\\n# A model\\n"
api = HfApi()
said = {}

def add(path, content):
    return CommitOperationAdd(path, content)

def read(path):
    with open(path, "rb") as file:
        return file.read()

def fails(name, call):
    # The exception, and what caused it: the client wraps some of them.
    try:
        call()
        said[name] = ["nothing", "", None, ""]
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        said[name] = [type(error).__name__, type(error.__cause__).__name__, status, str(error)]
"""


@pytest.fixture
def child(tmp_path, child_environment):
    """Run Python that fills `said` in a process of its own against a server; returns `said`."""

    def run(
        hub: LoopbackHub, code: str, *, token: str | None = None, cache: Path = tmp_path / "cache"
    ) -> dict[str, Any]:
        program = PRELUDE + textwrap.dedent(code) + "\nprint(json.dumps(said))\n"
        environment = child_environment(**hub_environment(hub, cache, token=token))
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def asked(hub: LoopbackHub, method: str, part: str) -> list[str]:
    """Return the paths of the requests with a method and a part in the path."""
    return [path for seen, path, _ in hub.requests if seen == method and part in path]


def test_what_was_pushed_comes_back_and_history_is_kept(either_hub, child):
    said = child(
        either_hub,
        """
        said["url"] = api.create_repo("owner/m").url
        said["again"] = api.create_repo("owner/m", exist_ok=True).repo_id
        fails("taken", lambda: api.create_repo("owner/m"))
        first = api.repo_info("owner/m").sha
        push = lambda **more: api.create_commit(
            "owner/m", [add("README.md", CARD), add("deep/er/big.bin", BIG)], commit_message="both", **more
        )
        pushed = push(parent_commit=first)
        said["sha"], said["page"] = pushed.oid, str(pushed.commit_url)
        said["second"] = push().oid
        late = lambda: api.create_commit("owner/m", [add("x", b"x")], commit_message="late", parent_commit=first)
        fails("stale", late)
        said["whole"] = read(hf_hub_download("owner/m", "deep/er/big.bin")) == BIG
        folder = snapshot_download("owner/m")
        said["snapshot"] = [read(folder + "/deep/er/big.bin") == BIG, read(folder + "/README.md") == CARD]
        request = api.create_commit("owner/m", [add("idea.txt", b"what if")], commit_message="idea", create_pr=True)
        said["request"] = [request.pr_revision, request.pr_num, request.oid]
        said["idea"] = read(hf_hub_download("owner/m", "idea.txt", revision="refs/pr/1")).decode()
        api.create_commit(
            "owner/m", [CommitOperationDelete("deep/"), add("small.json", b"{}")], commit_message="less"
        )
        said["names"] = [file.path for file in api.list_repo_tree("owner/m", recursive=True)]
        api.create_branch("owner/m", branch="old", revision=pushed.oid)
        api.create_tag("owner/m", tag="v1", revision=pushed.oid)
        refs = api.list_repo_refs("owner/m", include_pull_requests=True)
        said["refs"] = {ref.ref: ref.target_commit for ref in refs.branches + refs.tags + refs.pull_requests}
        said["titles"] = [commit.title for commit in api.list_repo_commits("owner/m")]
        """,
    )
    shas = [commit.sha for commit in either_hub.commits("owner/m")]
    assert [commit.title for commit in either_hub.commits("owner/m")] == ["initial commit", "both", "less"]
    assert said["titles"] == ["less", "both", "initial commit"]
    assert (said["url"], said["again"]) == (f"{either_hub.url}/owner/m", "owner/m")
    assert said["taken"][:3] == ["HfHubHTTPError", "HTTPStatusError", 409]
    assert said["sha"] == said["second"] == shas[1]  # an unchanged push makes no commit
    assert said["page"].endswith(f"/owner/m/commit/{shas[1]}")
    assert said["stale"][:3] == ["HfHubHTTPError", "HTTPStatusError", 412]
    assert "A commit has happened since" in said["stale"][3]
    assert said["whole"]
    assert said["snapshot"] == [True, True]
    assert said["request"] == ["refs/pr/1", 1, either_hub.commits("owner/m", "refs/pr/1")[-1].sha]
    assert said["idea"] == "what if"
    assert said["names"] == [".gitattributes", "README.md", "small.json"]
    assert said["refs"] == {
        "refs/heads/main": shas[2],
        "refs/heads/old": shas[1],
        "refs/tags/v1": shas[1],
        "refs/pr/1": said["request"][2],
    }
    assert either_hub.files("owner/m", "v1")["deep/er/big.bin"] == BIG
    assert set(either_hub.files("owner/m")) == {".gitattributes", "README.md", "small.json"}
    assert BIG in either_hub.uploaded_bytes()
    assert not asked(either_hub, "POST", "/xet")


def test_only_binary_files_go_through_large_file_storage(lfs_hub, child):
    said = child(
        lfs_hub,
        """
        api.create_repo("owner/d", repo_type="dataset")
        files = {"README.md": CARD, "a.parquet": BIG, "in/b.parquet": BIG[::-1], "empty.bin": b""}
        more = dict(repo_type="dataset", commit_message="data")
        api.create_commit("owner/d", [add(*item) for item in files.items()], **more)
        api.create_commit("owner/d", [add("moved.parquet", BIG)], **more)
        info = api.dataset_info("owner/d", files_metadata=True)
        said["lfs"] = {f.rfilename: f.lfs and [f.lfs.sha256, f.lfs.size] for f in info.siblings}
        paths = api.get_paths_info("owner/d", ["a.parquet", "in", "absent"], repo_type="dataset")
        said["paths"] = [[type(path).__name__, path.path] for path in paths]
        folder = snapshot_download("owner/d", repo_type="dataset")
        said["same"] = [read(folder + "/" + name) == content for name, content in files.items()]
        """,
    )
    name, reverse = (hashlib.sha256(content).hexdigest() for content in (BIG, BIG[::-1]))
    assert {path: lfs for path, lfs in said["lfs"].items() if lfs} == {
        "a.parquet": [name, len(BIG)],
        "moved.parquet": [name, len(BIG)],
        "in/b.parquet": [reverse, len(BIG)],
    }
    assert {path for path, lfs in said["lfs"].items() if not lfs} == {".gitattributes", "README.md", "empty.bin"}
    assert sorted(said["paths"]) == [["RepoFile", "a.parquet"], ["RepoFolder", "in"]]
    assert said["same"] == [True] * 4
    # The same bytes in a later commit are there already.
    assert sorted(asked(lfs_hub, "PUT", "")) == sorted(f"/large-files/{oid}/upload" for oid in (name, reverse))


REFUSALS = {
    # repository: (method, path, the fault, exception, its cause, status)
    "gated": (
        "HEAD",
        "/resolve/",
        {"status": 403, "error_code": "GatedRepo"},
        "GatedRepoError",
        "HTTPStatusError",
        403,
    ),
    "unauthorised": ("HEAD", "/resolve/", {"status": 401}, "HfHubHTTPError", "HTTPStatusError", 401),
    "forbidden": ("HEAD", "/resolve/", {"status": 403}, "LocalEntryNotFoundError", "HfHubHTTPError", None),
    "cut-metadata": ("HEAD", "/resolve/", {"cut_answer_after": 0}, "RemoteProtocolError", "RemoteProtocolError", None),
    "broken": ("GET", "/resolve/", {"status": 503}, "HfHubHTTPError", "HTTPStatusError", 503),
    "short": ("GET", "/resolve/", {"size_off_by": -100}, "OSError", "NoneType", None),
    "promised-more": ("HEAD", "/resolve/", {"size_off_by": 7}, "OSError", "NoneType", None),
    "busy": ("POST", "/commit/", {"status": 429, "retry_after": 1}, "HfHubHTTPError", "HTTPStatusError", 429),
    "down": ("POST", "/commit/", {"status": 500}, "HfHubHTTPError", "HTTPStatusError", 500),
    "cut-upload": ("POST", "/commit/", {"cut_upload_after": 9}, "RemoteProtocolError", "RemoteProtocolError", None),
    "lost-answer": ("POST", "/commit/", {"cut_answer_after": 0}, "RemoteProtocolError", "RemoteProtocolError", None),
    "no-write": ("PUT", "/upload", {"status": 403}, "RuntimeError", "HfHubHTTPError", None),
}


def test_a_fault_is_what_the_client_says_it_is(lfs_hub, child):
    for number, (name, (method, path, what, *_)) in enumerate(REFUSALS.items()):
        lfs_hub.add_repo(f"owner/{name}", {"big.bin": BIG})
        content = hashlib.sha256(BIG + bytes([number])).hexdigest()
        lfs_hub.fail(
            method, f"{content}{path}" if method == "PUT" else f"/owner/{name}/.*{path[1:]}", times=None, **what
        )
    said = child(
        lfs_hub,
        f"""
        for number, (name, method) in enumerate({[(name, rule[0]) for name, rule in REFUSALS.items()]!r}):
            if method in ("GET", "HEAD"):
                fails(name, lambda: hf_hub_download("owner/" + name, "big.bin"))
            else:
                new = [add("new.bin", BIG + bytes([number]))]
                fails(name, lambda: api.create_commit("owner/" + name, new, commit_message="push"))
        for name, call in {{
            "RepositoryNotFoundError": lambda: api.repo_info("owner/none"),
            "RevisionNotFoundError": lambda: api.repo_info("owner/gated", revision="none"),
            "RemoteEntryNotFoundError": lambda: hf_hub_download("owner/down", "none"),
        }}.items():
            fails(name, call)
        """,
    )
    for name, (*_, error, cause, status) in REFUSALS.items():
        assert said[name][:3] == [error, cause, status], (name, said[name])
    for name in ("RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError"):
        assert said[name][:3] == [name, "HTTPStatusError", 404]
    assert [len(lfs_hub.commits(f"owner/{name}")) for name in ("down", "cut-upload", "lost-answer")] == [1, 1, 2]
    assert [fault.struck for fault in lfs_hub.faults] == [1] * len(REFUSALS)  # none of these is tried again


def test_what_passes_is_tried_again_and_succeeds(lfs_hub, child):
    large = os.urandom(11 * 1024**2)  # the client writes, and so resumes, in pieces of 10 MiB
    lfs_hub.add_repo("owner/m", {"a.bin": BIG, "large.bin": large})
    lfs_hub.fail("HEAD", "a.bin", status=503)
    lfs_hub.fail("GET", "large.bin", cut_answer_after=len(large) - 1000)
    lfs_hub.fail("GET", "/tree/", status=503)
    lfs_hub.fail("POST", "/preupload/", status=429, retry_after=0)
    lfs_hub.fail("PUT", "/upload", cut_upload_after=1000)
    said = child(
        lfs_hub,
        """
        hf_hub_download("owner/m", "a.bin")
        snapshot_download("owner/m")
        api.create_commit("owner/m", [add("b.bin", BIG[::-1])], commit_message="push")
        """,
    )
    assert said == {}
    assert [fault.struck for fault in lfs_hub.faults] == [1] * 5
    assert lfs_hub.files("owner/m")["b.bin"] == BIG[::-1]
    ranges = [headers["range"] for method, _, headers in lfs_hub.requests if method == "GET" and "range" in headers]
    assert ranges == [f"bytes={10 * 1024**2}-"]


def test_the_client_does_not_notice_other_bytes_of_the_same_size(either_hub, child):
    either_hub.add_repo("owner/m", {"a.bin": BIG})
    either_hub.fail("GET", "a.bin", change=other_bytes)
    said = child(either_hub, 'said["same"] = read(hf_hub_download("owner/m", "a.bin")) == BIG')
    assert said == {"same": False}


def test_a_revision_can_move_in_the_middle_of_a_pull(hub, child):
    old = hub.add_repo("owner/m", {"a.txt": b"old", "b.txt": b"old"})
    hub.fail("HEAD", "b.txt", before=lambda: hub.commit("owner/m", {"a.txt": b"new", "b.txt": b"new"}))
    said = child(
        hub,
        """
        said["one by one"] = [read(hf_hub_download("owner/m", name)).decode() for name in ("a.txt", "b.txt")]
        said["info"] = api.model_info("owner/m").sha
        """,
    )
    assert said["one by one"] == ["old", "new"]
    assert said["info"] == hub.commits("owner/m")[-1].sha != old
    assert hub.commits("owner/m")[-1].parent == old


def test_tokens_private_and_gated_repositories(child):
    with LoopbackHub(require_token="secret") as hub:
        hub.add_repo("owner/m", {"a.txt": b"a"})
        hub.add_repo("owner/g", {"a.txt": b"a"}, gated=True)
        said = child(
            hub,
            """
            said["me"] = api.whoami()["name"]
            said["gated"] = api.model_info("owner/g").gated
            fails("ask", lambda: hf_hub_download("owner/g", "a.txt"))
            fails("wrong", lambda: api.repo_info("owner/m", token="other"))
            fails("none", lambda: api.repo_info("owner/m", token=False))
            fails("create", lambda: api.create_repo("owner/new", token=False))
            api.create_repo("owner/hidden", private=True)
            """,
            token="secret",
        )
        assert said["me"] == "tester"
        assert said["gated"] == "auto"
        assert said["ask"][:3] == ["GatedRepoError", "HTTPStatusError", 403]
        for name in ("wrong", "none", "create"):
            assert said[name][:3] == ["HfHubHTTPError", "HTTPStatusError", 401]
        assert hub.repository("owner/hidden").private
        assert hub.requests[0].headers["authorization"] == "Bearer secret"
    with LoopbackHub() as hub:
        hub.add_repo("owner/p", {"a.txt": b"a"}, private=True)
        said = child(hub, 'fails("private", lambda: hf_hub_download("owner/p", "a.txt"))')
        assert said["private"][:3] == ["RepositoryNotFoundError", "HTTPStatusError", 401]
        assert all("authorization" not in headers for _, _, headers in hub.requests)


def test_a_data_set_loads_from_it(either_hub, child):
    table = pa.table({"label": [0, 1, 1], "text": ["a", "b", "c"]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    card = b"---\nconfigs:\n- config_name: default\n  data_files: data/*.parquet\n---\n"
    files = {"README.md": card, "data/train.parquet": buffer.getvalue()}
    sha = either_hub.add_repo("owner/d", files, repo_type="dataset")
    said = child(
        either_hub,
        """
        import datasets
        rows = datasets.load_dataset("owner/d", split="train")
        said["rows"] = rows.to_dict()
        streamed = datasets.load_dataset("owner/d", split="train", streaming=True)
        said["streamed"] = list(streamed)[-1]
        try:
            datasets.load_dataset("owner/none")
        except Exception as error:
            said["none"] = type(error).__name__
        """,
    )
    assert said["rows"] == table.to_pydict()
    assert said["streamed"] == {"label": 1, "text": "c"}
    assert said["none"] == "DatasetNotFoundError"
    assert asked(either_hub, "GET", f"/datasets/owner/d/resolve/{sha}/data/train.parquet")
