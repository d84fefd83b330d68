"""A Hugging Face Hub on the loopback interface, for the real clients, that can be told to fail.

    with LoopbackHub(upload_mode="lfs") as hub:
        hub.add_repo("owner/name", {"config.json": b"{}"})
        hub.fail("GET", "/resolve/", cut_answer_after=100)
        run_cli("pull", "owner/name", env=hub_environment(hub, tmp_path))

A client reads HF_ENDPOINT when it is imported, so it has to run in a process of its own.
"""

import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import hub.xet  # noqa: F401  registers its endpoints
from hub.endpoints import Answer, Request, Store, refusal
from hub.repositories import Commit, Repository, RepoType, UploadMode

ON_THE_SIDE = ("/api/telemetry/", "/api/agent-harnesses")  # clients ask and go on without an answer
RECORDED_HEADERS = ("authorization", "range", "content-type", "content-length", "user-agent")


class Recorded(NamedTuple):
    """A request that arrived: its path with the query, and a few headers by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]


def other_bytes(body: bytes) -> bytes:
    """Return bytes of the same number that differ everywhere."""
    return bytes(byte ^ 0xFF for byte in body)


@dataclass
class Fault:
    """A rule for what goes wrong: the first rule that fits a request and is not used up strikes it.

    Attributes:
        method: Regular expression that the whole method matches.
        path: Regular expression that occurs in the path and query, quoted as sent.
        times: How many requests it strikes; None for every one.
        after: How many requests that fit pass unharmed first.
        status: Answer with this status and do nothing else.
        error_code: X-Error-Code of that answer, such as GatedRepo.
        message: X-Error-Message of that answer.
        retry_after: Retry-After of that answer, in seconds.
        cut_answer_after: Do as asked, then close the connection after so many bytes of the
            answer's body; 0 closes it before the headers too.
        cut_upload_after: Close the connection after reading so many bytes of the request's body.
        size_off_by: Add this to the sizes in the headers; a body never follows them further than it goes.
        change: Applied to the body of an answer; `other_bytes` keeps its length.
        before: Called when the request has been read, before anything is done about it.
        struck: How many requests it has struck.
    """

    method: str
    path: str
    times: int | None = 1
    after: int = 0
    status: int | None = None
    error_code: str | None = None
    message: str = "a fault was asked for"
    retry_after: int | None = None
    cut_answer_after: int | None = None
    cut_upload_after: int | None = None
    size_off_by: int = 0
    change: Callable[[bytes], bytes] | None = None
    before: Callable[[], object] | None = None
    struck: int = field(default=0, init=False)

    def fits(self, method: str, path: str) -> bool:
        """Return whether the rule is about such a request and is not used up."""
        used_up = self.times is not None and self.struck >= self.times
        return not used_up and bool(re.fullmatch(self.method, method) and re.search(self.path, path))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: "LoopbackHub"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # a client may leave whenever it likes
            self.hub.errors.append(f"{type(error).__name__}: {error}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: Nagle's algorithm would wait between two
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = hub.strike(self.command, self.path)
        recorded = {name: headers[name] for name in RECORDED_HEADERS if name in headers}
        hub.requests.append(Recorded(self.command, self.path, recorded))
        body = self._read_body(headers, None if fault is None else fault.cut_upload_after)
        if body:
            hub.store.contents.append(body)
        if fault is not None and fault.before is not None:
            fault.before()
        if fault is not None and fault.cut_upload_after is not None:
            return self._cut()
        answer = self._answer(Request(self.command, self.path, headers, body), fault)
        return self._send(answer, fault)

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _read_body(self, headers: Mapping[str, str], limit: int | None) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            length = int(headers.get("content-length", 0))
            return self.rfile.read(length if limit is None else min(limit, length))
        body = b""
        while limit is None or len(body) < limit:
            size = int(self.rfile.readline().split(b";")[0], 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        return body[:limit]

    def _answer(self, request: Request, fault: Fault | None) -> Answer:
        hub = self.server.hub
        if fault is not None and fault.status is not None:
            wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return refusal(fault.status, fault.message, code=fault.error_code, **wait)
        try:
            answer = hub.store.answer(request)
        except Exception as error:
            hub.errors.append(f"{request.method} {request.target}: {type(error).__name__}: {error}")
            return refusal(500, f"{type(error).__name__}: {error}")
        if answer is None:
            if not request.path.startswith(ON_THE_SIDE):
                hub.errors.append(f"{request.method} {request.target}: no such endpoint")
            return refusal(404, "this loopback server has no such endpoint")
        return answer

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        fault = fault or Fault("", "")
        body = fault.change(answer.body) if fault.change is not None else answer.body
        if fault.cut_answer_after == 0:
            return self._cut()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            right = int(value) if name == "X-Linked-Size" else 0
            self.send_header(name, str(right + fault.size_off_by) if name == "X-Linked-Size" else value)
        promised = max(0, len(body) + fault.size_off_by)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        if self.command == "HEAD":
            return None
        sent = body[: min(promised, len(body) if fault.cut_answer_after is None else fault.cut_answer_after)]
        self.wfile.write(sent)
        return self._cut() if len(sent) < promised else None

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


class LoopbackHub:
    """A Hub that listens on 127.0.0.1 from `with` to its end.

    Attributes:
        url: Where it listens.
        requests: Every request that arrived, struck by a fault or not.
        faults: Rules for what goes wrong; tests add and remove them.
        errors: What the server could not do, such as an endpoint it lacks; empty if all is well.
        store: The repositories, and `store.granted`, the tokens that may read gated ones.
    """

    def __init__(self, *, upload_mode: UploadMode = "regular", require_token: str | None = None) -> None:
        """Prepare a server without repositories.

        Args:
            upload_mode: How the server wants binary files: inside the commit, or beforehand
                through git-lfs. Text of ordinary length is always inside the commit.
            require_token: The one token that repositories and creation ask for; None asks for none.
        """
        self.store = Store(upload_mode, require_token)
        self.requests: list[Recorded] = []
        self.faults: list[Fault] = []
        self.errors: list[str] = []

    def __enter__(self) -> "LoopbackHub":
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = self.store.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, method: str, path: str, **what: Any) -> Fault:
        """Return a new fault, added to `faults`; see `Fault` for what can go wrong."""
        self.faults.append(Fault(method, path, **what))
        return self.faults[-1]

    def strike(self, method: str, path: str) -> Fault | None:
        """Return the fault that strikes a request, counted, or None."""
        with self.store.lock:
            for fault in self.faults:
                if fault.fits(method, path):
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.struck += 1
                    return fault
        return None

    def repository(self, repo_id: str, repo_type: RepoType | None = None) -> Repository:
        """Return a repository; without a type, the model of that name and else the data set.

        Raises:
            KeyError: If there is none.
        """
        for kind in (repo_type,) if repo_type else ("model", "dataset"):
            if (kind, repo_id) in self.store.repositories:
                return self.store.repositories[kind, repo_id]
        raise KeyError(repo_id)

    def reset(self) -> None:
        """Forget repositories, requests and faults, and take files inside the commit."""
        with self.store.lock:
            self.store.upload_mode = "regular"
            for memory in (self.store.repositories, self.store.large_files, self.store.contents, self.store.granted):
                memory.clear()
            self.requests.clear()
            self.faults.clear()

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        repo_type: RepoType = "model",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Return the sha of the only commit of a new repository."""
        with self.store.lock:
            repository = Repository(repo_id, repo_type, private, gated)
            self.store.repositories[repo_type, repo_id] = repository
            return self.commit(repo_id, files or {}, repo_type=repo_type, title="initial commit")

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        delete: Iterable[str] = (),
        *,
        branch: str = "main",
        repo_type: RepoType | None = None,
        title: str = "a commit by the test",
    ) -> str:
        """Return the sha of a new commit on a branch, which starts at main where it is new."""
        with self.store.lock:
            repository = self.repository(repo_id, repo_type)
            stored = {path: self.store.stored(content) for path, content in files.items()}
            self.store.large_files |= {file.sha256: file.content for file in stored.values() if file.lfs}
            parent = repository.resolve(branch) or repository.resolve("main")
            made = repository.add_commit(parent, stored, delete, title)
            repository.point(branch, made.sha)
            return made.sha

    def commits(self, repo_id: str, revision: str = "main", *, repo_type: RepoType | None = None) -> list[Commit]:
        """Return the commits of a revision, the oldest first; [-1] is its head."""
        with self.store.lock:
            return self.repository(repo_id, repo_type).history(revision)

    def files(self, repo_id: str, revision: str = "main", *, repo_type: RepoType | None = None) -> dict[str, bytes]:
        """Return the bytes of every file at a revision.

        Raises:
            KeyError: If there is no such repository or revision.
        """
        with self.store.lock:
            commit = self.repository(repo_id, repo_type).resolve(revision)
            if commit is None:
                raise KeyError(revision)
            return {path: file.content for path, file in commit.files.items()}

    def uploaded_bytes(self) -> bytes:
        """Return all that arrived in bodies, as sent and with base64 undone, for a test to search."""
        with self.store.lock:
            return b"\n".join(self.store.contents)


def hub_environment(hub: LoopbackHub, cache: Path, *, token: str | None = None) -> dict[str, str]:
    """Return what a child process needs in its environment to talk to a server and to nothing else.

    These are changes, for `run_cli(..., env=...)` and `child_environment(**...)`: an empty
    value counts as unset for the clients, and "0" takes back the tests' HF_HUB_OFFLINE.

    Args:
        hub: The server.
        cache: The folder of the clients' caches and of their login.
        token: The token of HF_TOKEN; None leaves the child without.
    """
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_TOKEN": token or "",
        "HUGGING_FACE_HUB_TOKEN": "",
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **{name: "" for proxy in proxies for name in (proxy, proxy.upper())},
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
