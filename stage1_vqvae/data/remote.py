"""Shards of a WebDataset on web servers: more data than disk.

Each shard is fetched once, in order. That tells which files it holds and where, what stands beside the images, and the
hash and header of each image. The first shards stay on disk while there is room; from the others rows are read later as
parts, a few beside each other at once where rows are read in order.
"""

import json
import tempfile
import threading
from dataclasses import dataclass, field, replace
from typing import IO

from stage1_vqvae.data.archives import Member, Tar, ending_of, is_webdataset, require_plain_names, shards_as_rows
from stage1_vqvae.data.loading import in_threads
from stage1_vqvae.data.rows import MAX_FILE_BYTES, RawData, content_digest
from stage1_vqvae.data.web import WebFile, urls_of
from stage1_vqvae.modalities import MODALITIES, Wanted, kinds_of_suffix
from vq_prior.core.config import parse_json
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Header

DEFAULT_MIB = 10_240
AHEAD_BYTES, NEAR_BYTES = 4 << 20, 64 << 10
MAX_BESIDE_BYTES = 1 << 20
Seen = tuple[bytes, Header]


@dataclass
class Room:
    """The disk that shards may take, in a folder for temporary files; it is free again when the process ends.

    Attributes:
        most: In bytes.
        shards: Those that are there, in order.
        span: Of each thread, what it read last: a URL, where it begins, and bytes.
    """

    most: int
    shards: "list[RemoteTar]" = field(default_factory=list)
    span: threading.local = field(default_factory=threading.local)

    def fetched(self, web: WebFile) -> IO[bytes]:
        """Return a file of the disk with what a web server holds; the shards that came last are removed to make room
        for it.

        Raises:
            ArtifactError: If it is larger than the room.
        """
        file: IO[bytes] = tempfile.TemporaryFile(prefix="vq-prior-")  # noqa: SIM115 a shard closes it
        for content in web.parts(0):
            if not file.tell():
                if web.size > self.most:
                    raise ArtifactError(
                        f"{web.name} has {-(-web.size >> 20) or 1} MiB, more than there is room for "
                        f"({self.most >> 20} MiB); give more by --shard-cache-mib"
                    )
                while self.shards and sum(shard.web.size for shard in self.shards) + web.size > self.most:
                    self.shards.pop().leave()
            file.write(content)
        file.flush()
        return file


class RemoteTar(Tar):
    """A `.tar` of a web server, with what is known of it since it was fetched once."""

    def __init__(self, url: str, room: Room, wanted: Wanted) -> None:
        """Fetch the shard; raises `ArtifactError` if it is none, is damaged, or has no room."""
        self.web = WebFile(url)
        self._room, self._lock = room, threading.Lock()
        self._file: IO[bytes] | None = room.fetched(self.web)
        super().__init__(self.web.name, self._file)
        require_plain_names(self)
        self._beside: dict[str, bytes] = {}
        self._seen: dict[str, Seen | ArtifactError] = {}
        label = wanted.label_column or "label"

        def look(number: int) -> None:
            member = self.members[number]
            ending = ending_of(member)
            kind = next((k for k in kinds_of_suffix(f".{ending.rpartition('.')[2]}") if k in MODALITIES), None)
            if kind is not None and member.size <= MAX_FILE_BYTES:
                self._seen[member.path] = self._inspect(member, wanted.kind() or kind)
            elif ending in ("cls", "json", label) and member.size <= MAX_BESIDE_BYTES:
                self._beside[member.path] = self._kept(member, label if ending == "json" else None)

        for _ in in_threads(look, range(len(self.members)), None):
            pass
        room.shards.append(self)

    def _inspect(self, member: Member, kind: str) -> Seen | ArtifactError:
        content = self.read(member)
        try:
            return content_digest(content), MODALITIES[kind].files.inspect(content, lambda: self.name_of(member))
        except ArtifactError as error:
            return error

    def _kept(self, member: Member, entry: str | None) -> bytes:
        """Return a text that stands beside an image, of JSON the one entry that may be the label."""
        content = self.read(member)
        if entry is None:
            return content
        entries = parse_json(content, self.name_of(member))
        return json.dumps({entry: entries[entry]} if isinstance(entries, dict) and entry in entries else {}).encode()

    def name_of(self, member: Member) -> str:
        """Return what to call a file."""
        return f"{self.path}/{member.path}"

    def seen(self, member: Member) -> Seen | None:
        """Return hash and header of a file, as it was when the shard was fetched; raises what was wrong with it."""
        seen = self._seen.get(member.path)
        if isinstance(seen, ArtifactError):
            raise seen
        return seen

    def leave(self) -> None:
        """Remove the shard from the disk."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def read(self, member: Member) -> bytes:
        """Return a file's bytes, from the disk or from its server; raises what `WebFile.parts` does."""
        if (beside := getattr(self, "_beside", {}).get(member.path)) is not None:
            return beside
        start, stop = member.offset, member.offset + member.size
        with self._lock:
            if self._file is not None:
                self._file.seek(start)
                return self._file.read(member.size)
        return self._from_server(start, stop)

    def _from_server(self, start: int, stop: int) -> bytes:
        span = self._room.span
        url, first, held = getattr(span, "held", ("", 0, b""))
        last = first + len(held)
        if url == self.web.url and first <= start and stop <= last:
            return held[start - first : stop - first]
        in_order = url == self.web.url and first <= start <= last + NEAR_BYTES
        end = max(stop, min(self.web.size, start + AHEAD_BYTES)) if in_order else stop
        content = self.web.read(start, end)
        span.held = (self.web.url, start, content)
        return content[: stop - start]


def open_remote(data: str, wanted: Wanted) -> RawData:
    """Return the rows of the shards of a WebDataset on web servers, each fetched once.

    Args:
        data: URLs, with blanks between them; {000..009} in one stands for each number.
        wanted: What the user said of the data.

    Raises:
        ArtifactError: If a shard is missing, damaged, too large or none, or its server sends no parts of files.
        UsageError: If the URLs are no shards, or what was said of them does not fit.
        EnvironmentFault: If a server does not answer.
    """
    for flag, value in (("--labels-file", wanted.labels_file), ("--file-column", wanted.file_column)):
        if value is not None:
            raise UsageError(f"{flag} {value} does not apply to shards of a web server; leave it out")
    urls = urls_of(data)
    for url in urls:
        if not url.partition("?")[0].lower().endswith(".tar"):
            raise UsageError(f"{url.partition('?')[0]} must be a .tar shard of a WebDataset; download other files")
    room = Room((wanted.shard_cache_mib or DEFAULT_MIB) << 20)
    shards = []
    for url in urls:
        shards.append(RemoteTar(url, room, wanted))
        if not is_webdataset(shards[-1]):
            raise ArtifactError(f"{shards[-1].path} is no shard of a WebDataset (NAME.jpg and NAME.cls side by side)")
    raw = shards_as_rows(shards, wanted)
    size, on_disk = sum(shard.web.size for shard in shards), len(room.shards)
    room.shards.clear()  # from here on none gives way; and a shard that nobody needs is gone at once
    note = (
        f"fetched {len(shards)} shard(s) of {-(-size >> 20)} MiB; {on_disk} of them stay on the disk "
        f"({room.most >> 20} MiB at most, see --shard-cache-mib), rows of the others are read from the server"
    )
    return replace(raw, notes=(note, *raw.notes))
