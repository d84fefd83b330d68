"""Repositories as the Hub keeps them, in memory: commits, branches, tags, pull requests."""

import codecs
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Literal

RepoType = Literal["model", "dataset"]
UploadMode = Literal["regular", "lfs"]

GITATTRIBUTES = b"*.bin filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
COMMIT_SHA = re.compile(r"[0-9a-f]{40}")


def is_text(sample: bytes) -> bool:
    """Return whether the first bytes of a file, perhaps cut inside a character, are UTF-8 without NUL."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample, final=False)
    except UnicodeDecodeError:
        return False
    return b"\0" not in sample


def blob_oid(content: bytes) -> str:
    """Return git's name of a blob, 40 hex digits."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class StoredFile:
    """A file's bytes, and whether git holds them or a pointer to large file storage."""

    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        """The name of the bytes in large file storage, 64 hex digits."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """The text that git holds in the place of a large file."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.content)}")
        return "".join(f"{line}\n" for line in lines).encode()

    @cached_property
    def blob_id(self) -> str:
        """Git's name of what git holds."""
        return blob_oid(self.pointer if self.lfs else self.content)

    @property
    def etag(self) -> str:
        """The name by which clients compare the file with theirs."""
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    """One state of a repository and where it came from."""

    sha: str
    parent: str | None
    title: str
    description: str
    files: Mapping[str, StoredFile]
    created_at: datetime

    @property
    def date(self) -> str:
        """When it was made, as the Hub writes it."""
        return self.created_at.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@dataclass
class Repository:
    """A repository: its commits by sha, and the names that point at them."""

    id: str
    repo_type: RepoType = "model"
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)  # refs/pr/N

    @property
    def web_path(self) -> str:
        """The path of its web pages and files."""
        return f"datasets/{self.id}" if self.repo_type == "dataset" else self.id

    def resolve(self, revision: str) -> Commit | None:
        """Return the commit that a branch, tag, pull request or sha names, or None."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        for names in (self.branches, self.tags, self.pull_requests):
            if name in names:
                return self.commits[names[name]]
        return self.commits.get(revision)

    def history(self, revision: str = "main") -> list[Commit]:
        """Return the commits that led to a revision, the oldest first."""
        found, at = [], self.resolve(revision)
        while at is not None:
            found.append(at)
            at = self.commits[at.parent] if at.parent else None
        return found[::-1]

    def add_commit(
        self,
        parent: Commit | None,
        files: Mapping[str, StoredFile],
        delete: Iterable[str],
        title: str,
        description: str = "",
    ) -> Commit:
        """Return a new commit on `parent` that no name points at yet."""
        gone = set(delete)
        kept = {path: file for path, file in parent.files.items() if path not in gone} if parent else {}
        content = dict(sorted((kept | dict(files)).items()))
        named = [self.repo_type, self.id, str(len(self.commits)), parent.sha if parent else "", title, description]
        named += [f"{path} {file.blob_id}" for path, file in content.items()]
        sha = hashlib.sha1("\n".join(named).encode()).hexdigest()
        commit = Commit(sha, parent.sha if parent else None, title, description, content, datetime.now(UTC))
        self.commits[sha] = commit
        return commit

    def point(self, name: str, sha: str) -> None:
        """Let a branch, or a pull request that exists, name a commit."""
        names = self.pull_requests if name in self.pull_requests else self.branches
        names[name] = sha

    def open_pull_request(self, sha: str) -> int:
        """Return the number of a new pull request that names a commit."""
        number = len(self.pull_requests) + 1
        self.pull_requests[f"refs/pr/{number}"] = sha
        return number
