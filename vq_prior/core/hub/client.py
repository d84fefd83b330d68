"""The Hugging Face Hub: one commit out, one pinned commit in.

What is fetched is named by a rule, never by the repository: a file of any other
name is not downloaded. A revision is resolved to its commit once, and the cache
learns of it only when every file of that commit has arrived.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError, VQPriorError
from vq_prior.core.hub.answers import ATTEMPTS, LOG_IN, TIMEOUT_SECONDS, attempt, is_final, malformed, status_of
from vq_prior.core.hub.cache import remember
from vq_prior.core.identity import hub_digest

NAME, REVISION = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", r"\w[\w./-]*"
HUB_ID = re.compile(rf"{NAME}(@{REVISION})?")
MAIN = "main"  # the branch that no revision means
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
MAX_SMALL_BYTES = 64 << 20

Say = Callable[[str], object]


def _silent(_line: str) -> None:
    pass


@dataclass(frozen=True)
class HubId:
    """A repository of the Hub, `owner/name`, at a revision (a branch, tag or commit; None is its main branch)."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubId":
        """Return the repository that `owner/name[@revision]` names.

        Raises:
            UsageError: If the text is not of that form.
        """
        name, _, revision = text.partition("@")
        if not HUB_ID.fullmatch(text) or ".." in text or "--" in name or name.endswith((".git", ".ipynb")):
            raise malformed(text)
        return cls(name, revision or None)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def is_hub_id(text: str | Path) -> bool:
    """Return whether `text` names a repository: it has the form of one, and no path of that name exists."""
    return bool(HUB_ID.fullmatch(str(text))) and not Path(text).exists()


def fetch(
    repo: HubId,
    *,
    wanted: re.Pattern[str],
    repo_type: str = "model",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    say: Say = _silent,
) -> Path:
    """Return a folder of the cache that holds the files of one commit whose names match `wanted`.

    Without a network, the commit that was fetched last under this revision is returned. Bytes are
    not judged here: whoever opens the folder verifies its manifest (see `repository.local`).

    Args:
        repo: The repository.
        wanted: Full match of the names to fetch.
        repo_type: "model" or "dataset".
        token: Access token; None takes the stored one, False none.
        cache_dir: Cache of the Hub client; None takes its default.
        local_files_only: Whether to stay off the network.
        say: Takes notes, a line each: what was ignored, or that the cache had to do.

    Raises:
        ArtifactError: If repository, revision or access is missing, or a name in it is not a plain relative path.
        EnvironmentFault: If the Hub cannot be reached and the cache holds no copy.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(cache_dir) if cache_dir is not None else Path(constants.HF_HUB_CACHE)
    storage = cache / repo_folder_name(repo_id=repo.name, repo_type=repo_type)
    if local_files_only or constants.is_offline_mode():
        return _cached(storage, repo)
    try:
        listing = _listing(repo, repo_type, token)
    except EnvironmentFault as fault:
        try:
            folder = _cached(storage, repo)
        except ArtifactError:
            if Path(repo.name).parent.is_dir():  # then it was more likely meant as a path
                raise ArtifactError(f"{repo} does not exist, and the Hub did not answer for it") from None
            raise fault from None
        say(f"the Hub did not answer; taking the copy of {repo} in the cache, commit {folder.name[:12]}")
        return folder
    sizes, commit = listing.sizes, listing.commit
    _require_plain(sizes, repo)
    names = sorted(filter(wanted.fullmatch, sizes))
    _say_ignored(sorted(sizes.keys() - set(names)), repo, say)
    _require_small({name: sizes[name] for name in names}, repo)
    for name in names:
        _download(repo, commit, name, repo_type=repo_type, token=token, cache_dir=cache)
    if commit != repo.revision:
        _write_ref(storage, repo.revision or MAIN, commit)
    folder = storage / "snapshots" / commit
    if not names:
        raise ArtifactError(f"{repo} holds no file that vq-prior reads")
    remember(folder, listing.digests)
    return folder


@dataclass(frozen=True)
class _Listing:
    """The commit of a revision and its files: the size of each and its digest, as far as the Hub tells."""

    commit: str
    sizes: dict[str, int | None]
    digests: dict[str, str]


def _listing(repo: HubId, repo_type: str, token: str | bool | None) -> _Listing:
    """Return what the Hub says of a revision."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    info: Any = attempt(
        lambda: api.repo_info(
            repo.name, revision=repo.revision, repo_type=repo_type, files_metadata=True, timeout=TIMEOUT_SECONDS
        ),
        str(repo),
    )
    if not COMMIT.fullmatch(info.sha or ""):
        raise ArtifactError(f"{repo}: the Hub names no commit for it")
    files = {file.rfilename: file for file in info.siblings or ()}
    if not files:
        tree: Any = attempt(
            lambda: list(api.list_repo_tree(repo.name, recursive=True, revision=info.sha, repo_type=repo_type)),
            str(repo),
        )
        files = {entry.path: entry for entry in tree if hasattr(entry, "size")}
    digests = {name: digest for name, file in files.items() if (digest := _digest(file)) is not None}
    return _Listing(info.sha, {name: file.size for name, file in files.items()}, digests)


def _digest(file: Any) -> str | None:
    """Return what the Hub calls the bytes of a file: sha256 of a large one, git's id of any other."""
    digest = file.lfs.sha256 if file.lfs else getattr(file, "blob_id", None)
    return digest if isinstance(digest, str) and DIGEST.fullmatch(digest) else None


def _download(
    repo: HubId, commit: str, name: str, *, repo_type: str, token: str | bool | None, cache_dir: Path
) -> None:
    from huggingface_hub import hf_hub_download

    path: Any = attempt(
        lambda: hf_hub_download(
            repo.name, name, revision=commit, repo_type=repo_type, token=token, cache_dir=str(cache_dir)
        ),
        f"{repo}: {name}",
    )
    _require_small({name: Path(path).stat().st_size}, repo)  # also where the Hub told no size


def _require_plain(names: Iterable[str], repo: HubId) -> None:
    """Raise `ArtifactError` unless every file's name is a plain relative path on every system."""
    for name in names:
        parts = PurePosixPath(name).parts
        plain = name and not name.startswith("/") and not re.search(r'[\x00-\x1f\\:*?"<>|]', name)
        if not plain or not name.isprintable() or ".." in parts or "." in name.split("/") or "" in name.split("/"):
            raise ArtifactError(
                f"{repo} lists a file named {name[:60]!r}, which is not a plain relative path; not fetched"
            )


def _require_small(sizes: Mapping[str, int | None], repo: HubId) -> None:
    """Raise `ArtifactError` if a text or picture is larger than any of ours."""
    for name, size in sizes.items():
        if not name.endswith((".safetensors", ".parquet")) and (size or 0) > MAX_SMALL_BYTES:
            raise ArtifactError(f"{repo}: {name} has {size} bytes, more than the {MAX_SMALL_BYTES} allowed")


def _say_ignored(names: list[str], repo: HubId, say: Say) -> None:
    shown = [name for name in names if not name.split("/")[-1].startswith(".")]
    if shown:
        more = ", ..." if len(shown) > 3 else ""
        say(f"{repo}: ignored {len(shown)} files that no vq-prior artefact has ({', '.join(shown[:3])}{more})")


def _write_ref(storage: Path, revision: str, commit: str) -> None:
    """Tell the cache which commit a revision is, as the Hub client does: a file under `refs/`."""
    path = storage / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_text(commit, encoding="ascii")
    os.replace(temporary, path)


def _cached(storage: Path, repo: HubId) -> Path:
    """Return the folder of the commit that was fetched last under a revision; raises `ArtifactError` without one."""
    revision = repo.revision or MAIN
    reference = storage / "refs" / revision
    commit = revision if COMMIT.fullmatch(revision) else ""
    if not commit and reference.is_file():
        commit = reference.read_text(encoding="ascii", errors="replace").strip()
    folder = storage / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not folder.is_dir():
        raise ArtifactError(f"{repo} is neither a path nor in the cache; fetch it once with a network")
    return folder


def push(
    folder: Path,
    repo: HubId,
    *,
    message: str,
    repo_type: str = "model",
    private: bool | None = None,
    create_pr: bool = False,
    owns: Callable[[str], bool] = lambda _name: False,
    token: str | bool | None = None,
) -> str:
    """Send every file of `folder` as one commit on the commit that the revision has now; return where it can be seen.

    Args:
        folder: What to send; hidden files stay.
        repo: Made if it does not exist.
        message: Of the commit.
        repo_type: "model" or "dataset".
        private: Whether a repository that is made now is private; None leaves it to the Hub.
        create_pr: Whether to open a pull request instead.
        owns: Whether a file that is there and not in `folder` is to go in the same commit.
        token: Access token; None takes the stored one.

    Raises:
        ArtifactError: If the repository may not be written, or a pull request is asked of another revision.
        EnvironmentFault: If the Hub cannot be reached, or the repository moved meanwhile.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if create_pr and repo.revision not in (None, "main"):
        raise UsageError(f"--create-pr opens a pull request against main, got --revision {repo.revision}")
    api = HfApi(token=token)
    who = _who(api)
    attempt(lambda: api.create_repo(repo.name, repo_type=repo_type, private=private, exist_ok=True), str(repo))
    _require_access(api, repo, repo_type, who, write=not create_pr)
    listing = _parent(api, repo, repo_type, token)
    names = _visible(folder)
    gone = [name for name in sorted(listing.sizes) if name not in names and owns(name)]

    def commit() -> Any:
        return api.create_commit(
            repo.name,
            [*(CommitOperationAdd(n, str(folder / n)) for n in names), *(CommitOperationDelete(n) for n in gone)],
            commit_message=message,
            repo_type=repo_type,
            revision=repo.revision,
            create_pr=create_pr,
            parent_commit=listing.commit,
        )

    try:
        info: Any = attempt(commit, str(repo), attempts=1)
    except EnvironmentFault as fault:
        # The answer may be lost of a commit that was made. With a pull request nobody can tell.
        answered = fault.__cause__ is not None and is_final(fault.__cause__)
        if create_pr or answered or not _has_landed(api, repo, repo_type, listing.commit, folder, names, gone):
            _require_access(api, repo, repo_type, who, write=not create_pr, again=True)  # or was it taken away?
            raise
        return f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo.name}"
    return str(info.pr_url or info.commit_url)


def _visible(folder: Path) -> list[str]:
    """Return the names of the files below a folder, sorted; hidden ones stay."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path.as_posix() for path in files if not any(part.startswith(".") for part in path.parts)]


def _who(api: Any) -> str | None:
    """Return whom the Hub takes the token for; None without a token, or where it is not told.

    Raises:
        ArtifactError: If the Hub does not know the token, or it may only read.
        EnvironmentFault: If the Hub cannot be reached.
    """
    from huggingface_hub import get_token

    if api.token is False or not (api.token if isinstance(api.token, str) else get_token()):
        return None  # the Hub will ask for one, if it wants one

    def ask() -> Any:
        try:
            return api.whoami()
        except Exception as error:
            if status_of(error) == 401:
                raise ArtifactError(
                    f"the Hub does not know your token (401); {LOG_IN}, or mend HF_TOKEN, which comes first"
                ) from error
            if status_of(error) in (403, 404, 429):  # not for this token, no such question here, asked too often
                return {}
            raise

    account: Any = attempt(ask, "your token")
    name, auth = account.get("name"), account.get("auth")
    token = auth.get("accessToken") if isinstance(auth, dict) else None
    if isinstance(token, dict) and token.get("role") == "read":
        raise ArtifactError(
            f"your token may only read ({token.get('displayName')} of {name}); make one that may write on the Hub's "
            f"page of access tokens, and {LOG_IN}"
        )
    return name if isinstance(name, str) else None


def _require_access(
    api: Any, repo: HubId, repo_type: str, who: str | None, *, write: bool, again: bool = False
) -> None:
    """Raise `ArtifactError` if the Hub says that one may not write to a repository (or read it, for a pull request).

    hf_xet, which sends the large files, tells a refusal as a broken connection: so it is asked before.
    """
    may_ask = "write" in inspect.signature(api.auth_check).parameters
    options = {"write": True} if write and may_ask else {}

    def ask() -> None:
        try:
            api.auth_check(repo.name, repo_type=repo_type, **options)
        except Exception as error:
            if status_of(error) == 403 and write:
                name = f"{who}, who" if who else "somebody who"
                raise ArtifactError(
                    f"{repo}: the Hub takes you for {name} may not write there (403); ask its owner, {LOG_IN} as "
                    "another, or propose the change with --create-pr"
                ) from error
            if status_of(error) == 404 and not error.response.headers.get("x-error-code"):  # type: ignore[attr-defined]
                return  # a Hub that does not know the question
            raise

    try:
        attempt(ask, str(repo), attempts=1 if again else ATTEMPTS)
    except EnvironmentFault:
        if not again:  # then what went wrong before is told
            raise


def _has_landed(
    api: Any, repo: HubId, repo_type: str, parent: str, folder: Path, names: list[str], gone: list[str]
) -> bool:
    """Return whether a commit was made though its answer was lost: the newest one has all these files."""
    try:
        head = _listing(repo, repo_type, api.token)
        if head.commit == parent or any(name in head.sizes for name in gone):
            return False
        files: Any = attempt(
            lambda: api.get_paths_info(repo.name, names, revision=head.commit, repo_type=repo_type), str(repo)
        )
    except VQPriorError:
        return False
    digests = {file.path: digest for file in files if hasattr(file, "lfs") and (digest := _digest(file)) is not None}
    return all(
        name in digests and hub_digest(folder / name, length=len(digests[name])) == digests[name] for name in names
    )


def _parent(api: Any, repo: HubId, repo_type: str, token: str | bool | None) -> _Listing:
    """Return the commit to build on and the files it has; a branch that does not exist is made from main."""
    try:
        return _listing(repo, repo_type, token)
    except ArtifactError:
        if repo.revision in (None, MAIN) or COMMIT.fullmatch(repo.revision):
            raise
    attempt(lambda: api.create_branch(repo.name, branch=repo.revision, repo_type=repo_type, exist_ok=True), str(repo))
    return _listing(repo, repo_type, token)
