"""Files of web servers, read by parts: HTTP range requests."""

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError

SCHEMES = ("https://", "http://")
SPAN = re.compile(r"\{(\d{1,12})\.\.(\d{1,12})\}")
MOST_URLS = 100_000
TIMEOUT_SECONDS, TRIES, PAUSE_SECONDS = 30, 5, 0.5
PIECE_BYTES = 1 << 20
BUSY = (429, 500, 502, 503, 504)  # answers that another try may change


def is_remote(data: str) -> bool:
    """Return whether DATA is the URL of a file of a web server, or several, with blanks between them."""
    return bool(data.split()) and all(part.lower().startswith(SCHEMES) for part in data.split())


def urls_of(data: str) -> list[str]:
    """Return the URLs that DATA means, in order; {000..009} stands for each of these numbers.

    >>> urls_of("https://a.org/{08..10}.tar"), urls_of("http://a/x.tar http://a/y.tar")
    (['https://a.org/08.tar', 'https://a.org/09.tar', 'https://a.org/10.tar'], ['http://a/x.tar', 'http://a/y.tar'])

    Raises:
        UsageError: If a URL holds a password, a range is empty, or they are too many.
    """
    urls = [url for part in data.split() for url in _spread(part)]
    for url in urls[:MOST_URLS]:
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise UsageError("a URL as DATA must hold no user or password: they would be written into RUN")
    if len(set(urls)) != len(urls) or len(urls) > MOST_URLS:
        raise UsageError(f"DATA must be at most {MOST_URLS} URLs, each once, got {len(urls)}")
    return urls


def _spread(url: str) -> Iterator[str]:
    match = SPAN.search(url)
    if match is None:
        yield url
        return
    low, high = match[1], match[2]
    if not 0 <= int(high) - int(low) < MOST_URLS:
        raise UsageError(f"{match[0]} must be a range of at most {MOST_URLS} numbers, the smaller one first")
    for number in range(int(low), int(high) + 1):
        yield from _spread(f"{url[: match.start()]}{number:0{len(low)}d}{url[match.end() :]}")


class WebFile:
    """A file of a web server; any number of threads read it.

    Attributes:
        url: Where it is.
        name: The same without what follows a question mark, which may be secret.
        size: Its bytes; known once a part was read.
    """

    def __init__(self, url: str) -> None:
        self.url, self.name = url, url.partition("?")[0]
        self.size = 0
        self._tag: str | None = None

    def parts(self, start: int, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `stop`, or to the end; what breaks off is asked for again.

        Raises:
            ArtifactError: If there is no such file, its server sends no parts of files, or it changed meanwhile.
            EnvironmentFault: If the server does not answer.
        """
        at, failed = start, 0
        while stop is None or at < stop:
            try:
                with self._answer(at, stop) as answer:
                    stop = self.size if stop is None else stop
                    while at < stop and (content := answer.read(min(PIECE_BYTES, stop - at))):
                        yield content
                        at, failed = at + len(content), 0
                if at < stop:
                    raise OSError("the connection ended early")
            except (OSError, http.client.HTTPException) as error:
                failed += 1
                if failed == TRIES:
                    cause = str(getattr(error, "reason", "") or error)[:80]
                    raise EnvironmentFault(f"{self.name} cannot be read ({cause}); run it again later") from error
                time.sleep(PAUSE_SECONDS * 2**failed)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`; raises what `parts` does."""
        return b"".join(self.parts(start, stop))

    def _answer(self, start: int, stop: int | None) -> Any:
        """Return an open answer whose bytes begin at `start`; raises `OSError` where another try may help."""
        wanted = f"bytes={start}-{'' if stop is None else stop - 1}"
        request = urllib.request.Request(self.url, headers={"Range": wanted, "Accept-Encoding": "identity"})
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in BUSY:
                raise OSError(f"{error.code} {error.reason}") from error
            if error.code in (412, 416):
                raise self._changed() from error
            raise ArtifactError(f"{self.name}: its server answered {error.code} {error.reason}") from error
        except (ValueError, http.client.InvalidURL) as error:  # a port that is no number, a space
            raise UsageError(f"{self.name} is no URL ({str(error)[:80]})") from error
        try:
            self._check(answer, start)
        except BaseException:
            answer.close()
            raise
        return answer

    def _check(self, answer: Any, start: int) -> None:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if answer.status != 206 or span is None or int(span[1]) != start:
            raise ArtifactError(
                f"{self.name}: its server does not send parts of files (HTTP ranges); download the shards, or use "
                "another server"
            )
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if self._tag is None:
            self.size, self._tag = int(span[2]), tag
        if (self.size, self._tag) != (int(span[2]), tag):
            raise self._changed()

    def _changed(self) -> ArtifactError:
        return ArtifactError(f"{self.name} changed while it was used (another size or ETag); start anew")
