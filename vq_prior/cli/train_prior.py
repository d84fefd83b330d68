"""`vq-prior train-prior` as it is typed: Hub ids, images for codes, a prior to start from, RUN/model at the end."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

from stage1_vqvae.data.sources import said_of_data
from stage1_vqvae.extract import extract_codes
from stage1_vqvae.settings import ExtractCodes
from stage2_prior.fine_tuning import open_base
from stage2_prior.opening import rerun_of
from stage2_prior.settings import TrainPrior, check
from stage2_prior.train import train_prior as train
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.disk.components import WEIGHTS
from vq_prior.core.errors import UsageError
from vq_prior.core.identity import require_same_codec
from vq_prior.core.processes.runtime import start_runtime
from vq_prior.core.settings import changed
from vq_prior.model.folder import assemble, codec_for
from vq_prior.model.inputs import fetch_code_store, fetch_codec, fetch_once


def train_prior(settings: TrainPrior) -> None:
    """Train a prior into RUN/prior, on the codes of --data if that is given; with a codec also write RUN/model.

    Raises:
        UsageError: On a setting out of range, or other settings than those of the run in RUN.
        ArtifactError: If an input is missing, damaged, or belongs to another codec.
    """
    check(settings)
    settings = rerun_of(settings)
    if settings.from_model is not None:
        fetch_once(settings.from_model)
    base = None if settings.from_model is None else open_base(settings)
    settings = changed(settings, codec=settings.codec or _codec_beside(settings))
    if settings.codes is not None:
        settings = changed(settings, codes=fetch_code_store(settings.codes, settings.out / "codes"))
    if settings.codec is None:
        train(settings, base=base)
        return
    codec_folder = fetch_codec(settings.codec)
    codec = None if base is None else codec_for(codec_folder, base.spec)
    if base is not None and codec is not None:
        require_same_codec("the prior of --from", base.codec_id, "the codec", codec.codec_id)
    with _codes_there(settings) as settings:
        assert settings.codes is not None
        codec = codec or codec_for(codec_folder, CodeStore.open(settings.codes).spec)
        runtime = start_runtime(settings.precision, reproducible=settings.reproducible)
        for note in codec.notes:
            runtime.say(note)
        train(settings, codec=codec, base=base)
    if runtime.is_main and not settings.dry_run:
        model = assemble(codec_folder, settings.out / "prior", settings.out / "model", overwrite=True)
        print(f"wrote {model}; next: vq-prior generate --model {model} --num-images 16 --out {settings.out}/samples")
    runtime.barrier()


def _codec_beside(settings: TrainPrior) -> str | None:
    """Return the MODEL or RUN of --from if it holds a codec too; raises `UsageError` if --data needs one."""
    if settings.from_model is not None:
        base = fetch_once(settings.from_model)
        folders = (base / "vqvae", base / "model" / "vqvae")
        if any((folder / WEIGHTS).is_file() for folder in folders):
            return settings.from_model
    if settings.data is not None:
        raise UsageError(f"--data needs a codec, and {settings.from_model} holds a prior alone; give --codec as well")
    return None


@contextmanager
def _codes_there(settings: TrainPrior) -> Iterator[TrainPrior]:
    """Yield settings whose codes exist: those of --data go to RUN/codes, in a dry run to a folder that is deleted."""
    if settings.data is None:
        yield settings
        return
    assert settings.codec is not None
    codes = settings.out / "codes"
    request = ExtractCodes(
        codec=settings.codec,
        data=settings.data,
        out=codes,
        modality=settings.modality,
        options=settings.options,
        image_column=settings.image_column,
        **said_of_data(settings),
        overwrite=settings.overwrite,
    )
    of_data = ("data", "modality", "options", "image_column", *said_of_data(settings))
    ready = changed(settings, codes=codes, **dict.fromkeys(of_data))
    if not settings.dry_run:
        extract_codes(request)
        yield ready
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--dry-run with --data runs in one process; leave out --num-processes")
    with tempfile.TemporaryDirectory(prefix="vq-prior-") as temporary:
        codes = Path(temporary) / "codes"
        with redirect_stdout(io.StringIO()):
            extract_codes(replace(request, out=codes))
        yield changed(ready, codes=codes)
