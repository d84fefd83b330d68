"""What leaves the Hub client's cache: only what is proved damaged, in each layout that the client has had.

The folders are laid out by hand as huggingface_hub 2.4 lays them out; the names of shared contents are made up, as a
Xet hash is for whoever has only sha256.
"""

import hashlib
import os
from pathlib import Path

import pytest

from vq_prior.core.disk.artifacts import write_manifest
from vq_prior.core.errors import ArtifactError
from vq_prior.core.hub.cache import remember
from vq_prior.core.hub.repository import cache_of

COMMIT = "c" * 40
FILES = {
    "config.json": b'{"index": 1}',
    "vqvae/config.json": b'{"width": 8}',
    "vqvae/model.safetensors": b"codec " * 50,
    "prior/config.json": b'{"width": 9}',
    "prior/model.safetensors": b"prior " * 50,
}


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def xet_hash(content: bytes) -> str:
    """64 digits that are no sha256 of the bytes."""
    return hashlib.sha256(b"a tree of chunks" + content).hexdigest()


class Cache:
    """A cache with one repository, and what may be damaged in it."""

    def __init__(self, root: Path, layout: str) -> None:
        self.root, self.layout = root, layout
        files = dict(FILES)
        for part in ("vqvae", "prior"):
            made = root.parent / "made" / part
            made.mkdir(parents=True)
            for name in ("config.json", "model.safetensors"):
                (made / name).write_bytes(files[f"{part}/{name}"])
            write_manifest(made)
            files[f"{part}/manifest.json"] = (made / "manifest.json").read_bytes()
        self.folder = self.add("models--somebody--digits", files)

    def add(self, repository: str, files: dict[str, bytes]) -> Path:
        folder = self.root / repository / "snapshots" / COMMIT
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.layout == "files":  # where the system has no links
                path.write_bytes(content)
                continue
            large = name.endswith(".safetensors")
            etag = sha256(content) if large else git_id(content)
            if self.layout == "xet names" and large:
                etag = xet_hash(content)
            blob = self.root / repository / "blobs" / etag
            blob.parent.mkdir(parents=True, exist_ok=True)
            if self.layout == "shared" and large:
                shared = self.root / "blobs" / xet_hash(content)[:2] / xet_hash(content)
                shared.parent.mkdir(parents=True, exist_ok=True)
                shared.write_bytes(content)
                blob.unlink(missing_ok=True)
                blob.symlink_to(os.path.relpath(shared, blob.parent))
            else:
                blob.write_bytes(content)
            path.symlink_to(os.path.relpath(blob, path.parent))
        return folder

    def damage(self, name: str) -> None:
        path = (self.folder / name).resolve()
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))

    def everything(self) -> set[str]:
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if not path.is_dir()}

    def lost(self, error: type[Exception] = ArtifactError) -> set[str]:
        """Return what is gone after a failure, by name in the repository; nothing else may be."""
        before = self.everything()
        chains = {name: self.chain(name) for name in self.names()}
        with pytest.raises(error), cache_of(self.folder):
            raise error("it does not open")
        gone = before - self.everything()
        lost = {name for name, chain in chains.items() if chain & gone}
        assert gone == set().union(*(chains[name] for name in lost))
        return lost

    def names(self) -> list[str]:
        return [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]

    def chain(self, name: str) -> set[str]:
        path, chain = self.folder / name, set()
        while True:
            chain.add(Path(os.path.normpath(path)).relative_to(self.root).as_posix())
            if not path.is_symlink():
                return chain
            path = path.parent / path.readlink()


@pytest.fixture(params=["shared", "xet names", "sha256 names", "files"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", request.param)


def test_what_is_whole_stays_whatever_its_name(cache: Cache) -> None:
    assert cache.lost() == set()
    assert cache.lost(RuntimeError) == set()


@pytest.mark.parametrize("name", ["vqvae/model.safetensors", "prior/model.safetensors", "prior/config.json"])
def test_one_damaged_file_costs_one_file(cache: Cache, name: str) -> None:
    other = cache.add("models--other--model", {"model.safetensors": FILES["vqvae/model.safetensors"] + b"!"})
    cache.damage(name)
    assert cache.lost() == {name}
    assert (other / "model.safetensors").read_bytes() == FILES["vqvae/model.safetensors"] + b"!"


@pytest.mark.parametrize("name", ["config.json", "vqvae/manifest.json"])
def test_what_no_manifest_lists_is_judged_by_gits_id(cache: Cache, name: str) -> None:
    cache.damage(name)
    assert cache.lost() == ({name} if cache.layout != "files" else set())


def test_bytes_that_the_hub_has_stay_whatever_a_manifest_says(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", "shared")
    name = "vqvae/model.safetensors"
    for path in (cache.folder / name, (cache.folder / name).resolve()):
        path.unlink()
    cache.add("models--somebody--digits", {name: b"pushed by another program"})
    sharer = cache.add("models--other--model", {"model.safetensors": b"pushed by another program"})
    assert cache.lost() == set()
    assert (sharer / "model.safetensors").read_bytes() == b"pushed by another program"


def test_what_the_hub_said_proves_it_where_nothing_else_does(cache: Cache) -> None:
    for name in ("vqvae/manifest.json", "prior/manifest.json"):
        (cache.folder / name).unlink()
    name = "vqvae/model.safetensors"
    remember(cache.folder, {each: sha256(FILES[each]) for each in FILES if each.endswith(".safetensors")})
    assert cache.lost() == set()
    cache.damage(name)
    assert cache.lost() == {name}


def test_contents_outside_the_cache_are_not_ours_to_remove(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", "files")
    elsewhere = tmp_path / "mine.safetensors"
    elsewhere.write_bytes(b"mine")
    (cache.folder / "vqvae/model.safetensors").unlink()
    (cache.folder / "vqvae/model.safetensors").symlink_to(elsewhere)
    with pytest.raises(ArtifactError), cache_of(cache.folder):
        raise ArtifactError("it does not open")
    assert elsewhere.read_bytes() == b"mine"
    assert not (cache.folder / "vqvae/model.safetensors").exists()
