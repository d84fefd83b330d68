"""What a command is given, a path or a Hub id: fetched once by the main process, the same commit for all."""

from pathlib import Path

from vq_prior.core.hub.client import is_hub_id
from vq_prior.core.hub.repository import fetch_once as fetch_here
from vq_prior.core.processes.runtime import start_runtime


def fetch_once(path: str | Path) -> Path:
    """Return the folder that a path or the Hub id of a MODEL or component names.

    Raises:
        ArtifactError: If the Hub has no such repository, or refuses it.
        EnvironmentFault: If the Hub cannot be reached and the cache holds no copy.
    """
    if not is_hub_id(path):
        return Path(path)
    runtime = start_runtime("fp32")
    folder = fetch_here(path, say=print) if runtime.is_main else None
    runtime.barrier()
    return folder or fetch_here(path, local_files_only=True)


def fetch_codec(path: str | Path) -> Path:
    """Return the folder of the codec that a path or Hub id names, complete; raises what `fetch_once` does."""
    from stage1_vqvae.codecs import complete_codec, find_codec

    folder = fetch_once(path)
    complete_codec(path, folder)
    return find_codec(folder)


def fetch_code_store(codes: Path, out: Path) -> Path:
    """Return the code store that a path names, or the copy at `out` of the data set that a Hub id names.

    Raises:
        UsageError: If `out` holds other codes.
        ArtifactError: If the Hub has no such data set, or its rows are not what its index promises.
        EnvironmentFault: If the Hub cannot be reached and the cache holds no copy.
    """
    if not is_hub_id(codes):
        return codes
    from vq_prior.model.share import pull_codes

    runtime = start_runtime("fp32")
    if runtime.is_main:
        pull_codes(str(codes), out)
    runtime.barrier()
    return out
