"""What the Hub's answers mean: what may pass is tried again, everything else is one of our errors in one line."""

import errno
import re
import time
from collections.abc import Callable
from typing import Any

from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError, VQPriorError, in_one_line

ATTEMPTS, PATIENCE_SECONDS, TIMEOUT_SECONDS = 3, 5, 30
NOT_THE_NETWORK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE}
LOG_IN = "log in with `hf auth login`"
ASK = f"ask for access on its page and {LOG_IN}"
XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")  # of hf_xet, whose errors carry no response


def attempt(call: Callable[[], object], where: str, *, attempts: int = ATTEMPTS) -> object:
    """Return what `call` returns; what the network broke is tried again, everything else explained in one line."""
    _bound_waits()
    for number in range(1, attempts + 1):
        started = time.monotonic()
        try:
            return call()
        except VQPriorError:
            raise
        except Exception as error:
            fault = explain(error, where)
            waited = time.monotonic() - started > PATIENCE_SECONDS  # then the client repeated it by itself
            if number == attempts or waited or not isinstance(fault, EnvironmentFault) or is_final(error):
                raise fault from error
            time.sleep(number)
    raise AssertionError("unreachable")


def _bound_waits() -> None:
    """Let the client give up where the Hub asks for a long wait; by itself it would sleep through it in silence."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks
    if _refuse_long_wait not in hooks["response"]:
        get_session().event_hooks = hooks | {"response": [*hooks["response"], _refuse_long_wait]}


def _refuse_long_wait(response: Any) -> None:
    if response.status_code != 429:
        return
    retry_after = re.fullmatch(r"\s*(\d+)\s*", response.headers.get("retry-after", ""))
    window = re.search(r"\bt\s*=\s*(\d+)", response.headers.get("ratelimit", ""))
    seconds = max(int(match[1][:9]) if match else 0 for match in (retry_after, window))
    if seconds > TIMEOUT_SECONDS:
        raise EnvironmentFault(f"the Hub takes no more requests for {seconds} seconds; run it again then")


def is_final(error: BaseException) -> bool:
    """Return whether an answer of the Hub says that trying again at once is of no use."""
    return status_of(error) in (409, 412, 429)


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an exception of the Hub client or of hf_xet, None where there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    match = XET_STATUS.search(str(error)) if status is None and isinstance(error, (OSError, RuntimeError)) else None
    return int(match[1]) if match else status


def explain(error: Exception, where: str) -> VQPriorError:
    """Return an exception of the Hub client as one of ours."""
    from huggingface_hub import errors

    status = status_of(error)
    if isinstance(error, errors.GatedRepoError):
        return gated(where)
    if isinstance(error, errors.RevisionNotFoundError):
        return without_revision(where)
    if isinstance(error, errors.RepositoryNotFoundError):
        return missing(where)
    cause = error.__cause__ or error.__context__
    if isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError)) and status is None:
        return explain(cause, where) if isinstance(cause, Exception) else _unreachable(where, "no answer")
    if isinstance(error, errors.EntryNotFoundError):
        return ArtifactError(f"{where} is missing on the Hub")
    if isinstance(error, errors.HFValidationError):
        return malformed(where)
    if status in (401, 403):
        return refused(where, status)
    if status in (409, 412):
        return EnvironmentFault(f"{where} was changed by another while this was sent; nothing was sent, run it again")
    if status == 429:
        return EnvironmentFault(f"the Hub is answering too many requests to take one for {where}; run it again later")
    if status is not None and status >= 500:
        return _unreachable(where, f"error {status}")
    if status is not None:
        return ArtifactError(f"{where}: the Hub refused the request ({status}: {in_one_line(error)})")
    if "onsistency check failed" in str(error):
        return ArtifactError(f"{where} arrived with another size than announced; run it again")
    if isinstance(error, OSError) and (error.errno in NOT_THE_NETWORK or error.filename is not None):
        raise error
    return _unreachable(where, type(error).__name__)


def malformed(where: str) -> UsageError:
    """Return the error of a text that has not the form of a Hub id."""
    return UsageError(f"{where} is no Hub id; write owner/name or owner/name@revision")


def gated(where: str) -> ArtifactError:
    """Return the error of a repository whose owner decides who may read it."""
    return ArtifactError(f"{where} is gated; {ASK}")


def without_revision(where: str) -> ArtifactError:
    """Return the error of a branch, tag or commit that is not there."""
    return ArtifactError(f"{where}: the Hub has no such revision")


def missing(where: str) -> ArtifactError:
    """Return the error of a repository that is not there, or is hidden."""
    return ArtifactError(f"{where} does not exist, neither as a path nor on the Hub, or it is private: {ASK}")


def refused(where: str, status: int) -> ArtifactError:
    """Return the error of a repository that this token may not use."""
    return ArtifactError(f"{where}: the Hub refused access ({status}); {ASK}")


def _unreachable(where: str, cause: str) -> EnvironmentFault:
    return EnvironmentFault(f"the Hub did not answer for {where} ({cause}); check the network and run it again")
