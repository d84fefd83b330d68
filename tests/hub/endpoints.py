"""What the Hub answers to each request that huggingface_hub and datasets send, as functions of the store."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub.repositories import (
    COMMIT_SHA,
    GITATTRIBUTES,
    Commit,
    Repository,
    RepoType,
    StoredFile,
    UploadMode,
    is_text,
)

USER = "tester"
MAX_REGULAR_BYTES = 10 * 1024**2


@dataclass
class Request:
    """A request as it was read: the path still quoted, header names in lower case, the body whole."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The path without the query."""
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's values by name."""
        return parse_qs(urlsplit(self.target).query)

    @property
    def token(self) -> str | None:
        """What follows `Bearer`, or None."""
        return self.headers.get("authorization", "").removeprefix("Bearer ").strip() or None

    def asks(self, name: str) -> bool:
        """Return whether a switch in the query is on."""
        return self.query.get(name, [""])[-1].lower() in ("1", "true")


@dataclass
class Answer:
    """An answer before it is sent; the length of the body is added then."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, status: int = 200) -> "Answer":
        """Return an answer whose body is JSON."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})


def refusal(status: int, message: str, *, code: str | None = None, **headers: str) -> Answer:
    """Return an error as the Hub words it, in the headers and in the body."""
    answer = Answer.of({"error": message}, status)
    answer.headers |= {"X-Error-Message": message} | headers
    if code is not None:
        answer.headers["X-Error-Code"] = code
    return answer


class Refused(Exception):
    """Ends the work on a request with an answer."""

    def __init__(self, status: int, message: str, *, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.answer = refusal(status, message, code=code, **headers)


Endpoint = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Endpoint]] = []
PARTS = {
    "TYPE": r"(?P<repo_type>model|dataset)s",
    "REPO": r"(?P<repo_id>[^/]+/[^/]+)",
    "WEB": r"(?P<prefix>datasets/)?(?P<repo_id>[^/]+/[^/]+?)",
    "REVISION": r"(?P<revision>[^/]+)",
    "PATH": r"(?P<path>.+)",
}


def route(method: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator that registers an endpoint; words in capitals stand for parts of the path."""
    for name, part in PARTS.items():
        pattern = pattern.replace(name, part)

    def register(function: Endpoint) -> Endpoint:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class Store:
    """Every repository and large file of a server, and the endpoints over them."""

    def __init__(self, upload_mode: UploadMode, require_token: str | None) -> None:
        self.url = ""
        self.upload_mode = upload_mode
        self.require_token = require_token
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.granted: set[str] = set()  # tokens that may read gated repositories
        self.contents: list[bytes] = []  # what arrived encoded, decoded
        self.lock = threading.RLock()

    def answer(self, request: Request) -> Answer | None:
        """Return the answer to a request, or None where there is no such endpoint."""
        for method, pattern, endpoint in ROUTES:
            match = pattern.fullmatch(request.path)
            if match and request.method in method.split("|"):
                parts = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
                with self.lock:
                    try:
                        return endpoint(self, request, **parts)
                    except Refused as refused:
                        return refused.answer
        return None

    def mode_of(self, content: bytes, size: int) -> UploadMode:
        """Return how a file travels that begins with these bytes: text is never large unless it is."""
        if self.upload_mode == "regular" or not size:
            return "regular"
        return "regular" if is_text(content[:512]) and size <= MAX_REGULAR_BYTES else "lfs"

    def stored(self, content: bytes) -> StoredFile:
        """Return a file stored in the way this server would ask for."""
        return StoredFile(content, self.mode_of(content, len(content)) == "lfs")

    def authorise(self, request: Request) -> None:
        """Refuse a request without the token that the server requires."""
        if self.require_token is not None and request.token is None:
            raise Refused(401, "Invalid username or password.")
        if self.require_token is not None and request.token != self.require_token:
            raise Refused(401, "Invalid credentials in Authorization header")

    def repository(self, request: Request, repo_type: str, repo_id: str) -> Repository:
        """Return a repository that the request may see."""
        self.authorise(request)
        found = self.repositories.get((repo_type, repo_id))
        if found is None:
            raise Refused(404, "Repository not found", code="RepoNotFound")
        if found.private and request.token is None:
            # The Hub sends no code here and the client infers it, but from https addresses alone.
            raise Refused(401, "Invalid username or password.", code="RepoNotFound")
        return found

    def revision(self, repository: Repository, name: str) -> Commit:
        """Return the commit of a revision."""
        found = repository.resolve(name)
        if found is None:
            raise Refused(404, f"Invalid rev id: {name}", code="RevisionNotFound")
        return found


@route("GET", "/api/whoami-v2")
def whoami(store: Store, request: Request) -> Answer:
    """Who the token belongs to."""
    if request.token is None or store.require_token not in (None, request.token):
        raise Refused(401, "Invalid credentials in Authorization header")
    role = {"accessToken": {"displayName": "loopback", "role": "write"}}
    return Answer.of({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": role})


@route("POST", "/api/validate-yaml")
def validate_yaml(_: Store, request: Request) -> Answer:
    """Whether a README has metadata between two lines of dashes; the metadata itself is not read."""
    content = json.loads(request.body)["content"]
    if not content.lstrip().startswith("---"):
        return Answer.of({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    if not re.match(r"\s*---\r?\n.*?^---\s*$", content, re.DOTALL | re.MULTILINE):
        return Answer.of({"errors": [{"message": "Invalid YAML: no closing ---"}], "warnings": []}, 400)
    return Answer.of({"errors": [], "warnings": []})


@route("POST", "/api/repos/create")
def create_repo(store: Store, request: Request) -> Answer:
    """A new repository with the Hub's first commit, or 409 with the address of the one that exists."""
    store.authorise(request)
    asked = json.loads(request.body)
    repo_type: RepoType = asked.get("type") or "model"
    repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
    existing = store.repositories.get((repo_type, repo_id))
    repository = existing or Repository(repo_id, repo_type, private=asked.get("visibility") == "private")
    named = {"url": f"{store.url}/{repository.web_path}", "name": repo_id, "private": repository.private}
    if existing is not None:
        return Answer.of({"error": f"You already created this {repo_type} repo: {repo_id}"} | named, 409)
    first = repository.add_commit(None, {".gitattributes": StoredFile(GITATTRIBUTES)}, (), "initial commit")
    repository.point("main", first.sha)
    store.repositories[repo_type, repo_id] = repository
    return Answer.of(named)


@route("DELETE", "/api/repos/delete")
def delete_repo(store: Store, request: Request) -> Answer:
    """Nothing; the repository is gone."""
    asked = json.loads(request.body)
    repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
    repository = store.repository(request, asked.get("type") or "model", repo_id)
    del store.repositories[repository.repo_type, repository.id]
    return Answer(200)


def described(file: StoredFile) -> dict[str, Any]:
    """What an information request says about a file."""
    says: dict[str, Any] = {"size": len(file.content), "blobId": file.blob_id}
    if file.lfs:
        says["lfs"] = {"sha256": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
    return says


@route("GET", "/api/TYPE/REPO")
@route("GET", "/api/TYPE/REPO/revision/REVISION")
def repo_info(store: Store, request: Request, repo_type: str, repo_id: str, revision: str = "main") -> Answer:
    """What the Hub knows of a repository at a revision; with `blobs`, of each file too."""
    repository = store.repository(request, repo_type, repo_id)
    commit = store.revision(repository, revision)
    files = commit.files.items()
    siblings = [{"rfilename": path} | (described(file) if request.asks("blobs") else {}) for path, file in files]
    says = {
        "_id": hashlib.sha1(repository.web_path.encode()).hexdigest()[:24],
        "id": repo_id,
        "author": repo_id.split("/")[0],
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": repository.history(commit.sha)[0].date,
        "private": repository.private,
        "gated": "auto" if repository.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
        "usedStorage": sum(len(file.content) for _, file in files),
    }
    return Answer.of(says | ({"modelId": repo_id} if repo_type == "model" else {}))


@route("GET", "/api/TYPE/REPO/auth-check(/write)?")
def auth_check(store: Store, request: Request, repo_type: str, repo_id: str) -> Answer:
    """Nothing, if the request may read the repository's files."""
    refuse_if_gated(store, request, store.repository(request, repo_type, repo_id))
    return Answer.of({})


def entries(commit: Commit) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every folder and file of a commit, as `tree` and `paths-info` describe them."""
    folders = {path.rsplit("/", n)[0] for path in commit.files for n in range(1, path.count("/") + 1)}
    for folder in sorted(folders):
        oid = hashlib.sha1(f"{commit.sha} {folder}".encode()).hexdigest()
        yield folder, {"type": "directory", "oid": oid, "size": 0, "path": folder}
    for path, file in commit.files.items():
        entry = {"type": "file", "oid": file.blob_id, "size": len(file.content), "path": path}
        if file.lfs:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
        yield path, entry


@route("GET", "/api/TYPE/REPO/tree/REVISION(/PATH)?")
def tree(store: Store, request: Request, repo_type: str, repo_id: str, revision: str, path: str = "") -> Answer:
    """The entries of a folder; with `recursive`, of those below it too."""
    commit = store.revision(store.repository(request, repo_type, repo_id), revision)
    inside = f"{path.strip('/')}/" if path.strip("/") else ""
    below = [(name[len(inside) :], entry) for name, entry in entries(commit) if name.startswith(inside)]
    if inside and not below:
        raise Refused(404, f"{path} does not exist on {revision}", code="EntryNotFound")
    with_commit = {"lastCommit": last_commit(commit)} if request.asks("expand") else {}
    return Answer.of([entry | with_commit for name, entry in below if request.asks("recursive") or "/" not in name])


def last_commit(commit: Commit) -> dict[str, str]:
    """A commit as an entry's last one; this server does not look for the commit that changed it."""
    return {"id": commit.sha, "title": commit.title, "date": commit.date}


@route("POST", "/api/TYPE/REPO/paths-info/REVISION")
def paths_info(store: Store, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """The entries of the named paths that exist."""
    commit = store.revision(store.repository(request, repo_type, repo_id), revision)
    as_json = "json" in request.headers.get("content-type", "")
    asked = json.loads(request.body) if as_json else parse_qs(request.body.decode())
    expand = str(asked.get("expand", "")).strip("[]'").lower() == "true"
    with_commit = {"lastCommit": last_commit(commit)} if expand else {}
    return Answer.of([entry | with_commit for path, entry in entries(commit) if path in asked.get("paths", [])])


@route("GET", "/api/TYPE/REPO/refs")
def refs(store: Store, request: Request, repo_type: str, repo_id: str) -> Answer:
    """Every name of a commit."""
    repository = store.repository(request, repo_type, repo_id)

    def listed(names: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": sha} for name, sha in names.items()]

    says = {"branches": listed(repository.branches, "refs/heads/"), "converts": []}
    says["tags"] = listed(repository.tags, "refs/tags/")
    if request.asks("include_prs"):
        says["pullRequests"] = listed(repository.pull_requests, "")
    return Answer.of(says)


@route("GET", "/api/TYPE/REPO/commits/REVISION")
def commits(store: Store, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """The commits that led to a revision, the newest first."""
    repository = store.repository(request, repo_type, repo_id)
    found = repository.history(store.revision(repository, revision).sha)[::-1]
    return Answer.of(
        [
            {"id": c.sha, "title": c.title, "message": c.description, "authors": [{"user": USER}], "date": c.date}
            for c in found
        ]
    )


@route("POST", "/api/TYPE/REPO/branch/REVISION")
def create_branch(store: Store, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """Nothing; a branch starts at `startingPoint`, or at main."""
    repository = store.repository(request, repo_type, repo_id)
    if revision.startswith("refs/"):
        raise Refused(400, f"Invalid reference for a branch: {revision}")
    if revision in repository.branches:
        raise Refused(409, f"Reference already exists: refs/heads/{revision}")
    start = json.loads(request.body or b"{}").get("startingPoint", "main")
    repository.point(revision, store.revision(repository, start).sha)
    return Answer.of({}, 201)


@route("POST", "/api/TYPE/REPO/tag/REVISION")
def create_tag(store: Store, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """Nothing; a tag names the revision's commit."""
    repository = store.repository(request, repo_type, repo_id)
    tag = json.loads(request.body)["tag"]
    if tag in repository.tags:
        raise Refused(409, f"Reference already exists: refs/tags/{tag}")
    repository.tags[tag] = store.revision(repository, revision).sha
    return Answer.of({}, 201)


@route("POST", "/api/TYPE/REPO/preupload/REVISION")
def preupload(store: Store, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """How each file is to travel, whether .gitignore excludes it, and the name of what is there now."""
    commit = store.revision(store.repository(request, repo_type, repo_id), revision)
    asked = json.loads(request.body)
    there = commit.files.get(".gitignore")
    rules = asked.get("gitIgnore") or (there.content.decode() if there else "")
    ignored = [line.strip("/ ") for line in rules.splitlines() if line.strip() and not line.startswith("#")]

    def one(file: dict[str, Any]) -> dict[str, Any]:
        path, now = file["path"], commit.files.get(file["path"])
        names = (path, *path.split("/"))
        return {
            "path": path,
            "uploadMode": store.mode_of(base64.b64decode(file["sample"]), file["size"]),
            "shouldIgnore": any(fnmatch(name, rule) for name in names for rule in ignored),
        } | ({"oid": now.etag} if now is not None else {})

    return Answer.of({"files": [one(file) for file in asked["files"]], "commitOid": commit.sha})


def operations(store: Store, request: Request, parent: Commit) -> tuple[dict, dict[str, StoredFile], list[str]]:
    """Return a commit's header, the files it writes and the paths it removes."""
    header: dict[str, Any] = {}
    files: dict[str, StoredFile] = {}
    gone: list[str] = []
    for line in request.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            header = value
        elif item["key"] == "file":
            content = base64.b64decode(value["content"])
            store.contents.append(content)
            files[value["path"]] = StoredFile(content)
        elif item["key"] == "lfsFile":
            if value["oid"] not in store.large_files:
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            files[value["path"]] = StoredFile(store.large_files[value["oid"]], lfs=True)
        elif item["key"] in ("deletedFile", "deletedFolder"):
            folder = value["path"].rstrip("/") + "/"
            found = [path for path in parent.files if path == value["path"] or path.startswith(folder)]
            if not found:
                raise Refused(404, f"A file with this name doesn't exist: {value['path']}", code="EntryNotFound")
            gone += found
        else:
            raise Refused(400, f"this server does not know the operation {item['key']}")
    return header, files, gone


@route("POST", "/api/TYPE/REPO/commit/REVISION")
def commit(store: Store, request: Request, repo_type: str, repo_id: str, revision: str) -> Answer:
    """The sha of a commit on a branch or, with `create_pr`, on a pull request of its own."""
    repository = store.repository(request, repo_type, repo_id)
    head = store.revision(repository, revision)
    if revision in repository.tags or (COMMIT_SHA.fullmatch(revision) and not request.asks("create_pr")):
        raise Refused(400, f"{revision} is not a branch")
    header, files, gone = operations(store, request, head)
    wanted = header.get("parentCommit")
    if wanted is not None and request.asks("create_pr"):
        head = repository.commits.get(wanted, head)
    if wanted is not None and not head.sha.startswith(wanted):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    made = repository.add_commit(head, files, gone, header["summary"], header.get("description", ""))
    page = f"{store.url}/{repository.web_path}"
    says = {"success": True, "commitOid": made.sha, "commitUrl": f"{page}/commit/{made.sha}", "hookOutput": ""}
    if request.asks("create_pr"):
        says["pullRequestUrl"] = f"{page}/discussions/{repository.open_pull_request(made.sha)}"
    else:
        repository.point(revision, made.sha)
    return Answer.of(says)


@route("POST", r"/WEB\.git/info/lfs/objects/batch")
def lfs_batch(store: Store, request: Request, repo_id: str, prefix: str = "") -> Answer:
    """Where each large file goes; one that is here already goes nowhere."""
    store.repository(request, "dataset" if prefix else "model", repo_id)

    def one(item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in store.large_files:
            return item
        actions = {verb: {"href": f"{store.url}/large-files/{item['oid']}/{verb}"} for verb in ("upload", "verify")}
        return item | {"authenticated": True, "actions": actions}

    return Answer.of({"transfer": "basic", "objects": [one(item) for item in json.loads(request.body)["objects"]]})


@route("PUT", "/large-files/(?P<oid>[0-9a-f]{64})/upload")
def lfs_upload(store: Store, request: Request, oid: str) -> Answer:
    """Nothing; the bytes are kept under their hash. The address is signed on the real Hub and takes no token."""
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, "The provided 'x-amz-content-sha256' does not match what was computed")
    store.large_files[oid] = request.body
    return Answer(200, headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", "/large-files/(?P<oid>[0-9a-f]{64})/verify")
def lfs_verify(store: Store, request: Request, oid: str) -> Answer:
    """Nothing, if the large file is here in full."""
    if len(store.large_files.get(oid, b"")) != json.loads(request.body)["size"]:
        raise Refused(404, "Object does not exist on the server")
    return Answer.of({"message": "ok"})


def refuse_if_gated(store: Store, request: Request, repository: Repository) -> None:
    """Refuse the files of a gated repository to those without access."""
    if repository.gated and request.token not in store.granted:
        message = f"Access to {repository.repo_type} {repository.id} is restricted."
        raise Refused(403 if request.token else 401, message, code="GatedRepo")


@route("HEAD|GET", "/WEB/resolve/REVISION/PATH")
def resolve(store: Store, request: Request, repo_id: str, revision: str, path: str, prefix: str = "") -> Answer:
    """A file, or the range of it that was asked for."""
    repository = store.repository(request, "dataset" if prefix else "model", repo_id)
    refuse_if_gated(store, request, repository)
    at = store.revision(repository, revision)
    file = at.files.get(path)
    if file is None:
        raise Refused(404, "Entry not found", code="EntryNotFound", **{"X-Repo-Commit": at.sha})
    headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": at.sha, "Accept-Ranges": "bytes"}
    headers |= {"Content-Type": "application/octet-stream"}
    if file.lfs:
        headers |= {"X-Linked-Size": str(len(file.content)), "X-Linked-Etag": f'"{file.etag}"'}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if asked is None:
        return Answer(200, file.content, headers)
    size = len(file.content)
    first, last = (int(number) if number else None for number in asked.groups())
    if first is None:
        first, last = max(0, size - (last or 0)), None
    if first >= size:
        raise Refused(416, "Requested range not satisfiable", **{"Content-Range": f"bytes */{size}"})
    part = file.content[first : size if last is None else last + 1]
    return Answer(206, part, headers | {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{size}"})
