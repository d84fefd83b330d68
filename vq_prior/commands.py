"""What each command does, from settings to printed result. Heavy imports happen here, when a command runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vq_prior.settings import Assemble, Env, Evaluate, Generate, Verify

if TYPE_CHECKING:
    from stage1_vqvae.settings import ExtractCodes, Reconstruct, TrainVQVAE
    from stage2_prior.settings import TrainPrior


def train_vqvae(settings: "TrainVQVAE") -> None:
    """Train a codec into RUN/vqvae."""
    from stage1_vqvae.train import train_vqvae as train

    train(settings)


def extract_codes(settings: "ExtractCodes") -> None:
    """Write the code store of a data set."""
    from stage1_vqvae.extract import extract_codes as extract

    extract(settings)


def train_prior(settings: "TrainPrior") -> None:
    """Train a prior into RUN/prior, on the codes of --data if that is given; with a codec also join both into
    RUN/model."""
    import dataclasses

    from stage1_vqvae.model import load_codec
    from stage2_prior.fine_tuning import open_base
    from stage2_prior.settings import check
    from stage2_prior.train import train_prior as train
    from vq_prior.core.components import find_component
    from vq_prior.core.identity import require_same_codec
    from vq_prior.core.runtime import start_runtime
    from vq_prior.model_folder import assemble as join

    check(settings)
    base = None if settings.from_model is None else open_base(settings)
    settings = dataclasses.replace(settings, codec=settings.codec or _codec_beside(settings))
    if settings.codec is None:
        train(settings, base=base)
        return
    codec_folder = find_component(Path(settings.codec), "vqvae")
    codec = load_codec(codec_folder)
    if base is not None:
        require_same_codec("the prior of --from", base.codec_id, "the codec", codec.codec_id)
    with _codes_there(settings) as settings:
        train(settings, codec=codec, base=base)
    runtime = start_runtime()
    if runtime.is_main and not settings.dry_run:
        model = join(codec_folder, settings.out / "prior", settings.out / "model", overwrite=True)
        print(f"wrote {model}; next: vq-prior generate --model {model} --num-images 16 --out {settings.out}/samples")
    runtime.barrier()


def _codec_beside(settings: "TrainPrior") -> str | None:
    """Return the MODEL or RUN of --from if it holds a codec too; raises `UsageError` if --data needs one."""
    from vq_prior.core.components import WEIGHTS
    from vq_prior.core.errors import UsageError

    if settings.from_model is not None:
        folders = (Path(settings.from_model) / "vqvae", Path(settings.from_model) / "model" / "vqvae")
        if any((folder / WEIGHTS).is_file() for folder in folders):
            return settings.from_model
    if settings.data is not None:
        raise UsageError(f"--data needs a codec, and {settings.from_model} holds a prior alone; give --codec as well")
    return None


@contextmanager
def _codes_there(settings: "TrainPrior") -> "Iterator[TrainPrior]":
    """Yield settings whose codes exist: those of --data go to RUN/codes, in a dry run to a folder that is deleted."""
    import dataclasses
    import io
    import os
    import tempfile
    from contextlib import redirect_stdout

    from stage1_vqvae.settings import ExtractCodes
    from vq_prior.core.errors import UsageError

    if settings.data is None:
        yield settings
        return
    assert settings.codec is not None
    codes = settings.out / "codes"
    request = ExtractCodes(
        codec=settings.codec,
        data=settings.data,
        out=codes,
        image_column=settings.image_column,
        label_column=settings.label_column,
        overwrite=settings.overwrite,
    )
    ready = dataclasses.replace(settings, codes=codes, data=None, image_column=None, label_column=None)
    if not settings.dry_run:
        extract_codes(request)
        yield ready
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--dry-run with --data runs in one process; leave out --num-processes")
    with tempfile.TemporaryDirectory(prefix="vq-prior-") as temporary:
        codes = Path(temporary) / "codes"
        with redirect_stdout(io.StringIO()):
            extract_codes(dataclasses.replace(request, out=codes))
        yield dataclasses.replace(ready, codes=codes)


def assemble(settings: Assemble) -> None:
    """Join a codec and a prior into a MODEL."""
    from vq_prior.core.components import find_component
    from vq_prior.model_folder import assemble as join

    codec, prior = find_component(settings.codec, "vqvae"), find_component(settings.prior, "prior")
    model = join(codec, prior, settings.out, overwrite=settings.overwrite)
    print(f"wrote {model}; next: vq-prior generate --model {model} --num-images 16 --out samples")


def generate(settings: Generate) -> None:
    """Draw images into a folder."""
    from vq_prior.sampler import generate as draw

    draw(settings)


def reconstruct(settings: "Reconstruct") -> None:
    """Write images beside their reconstructions."""
    from stage1_vqvae.evaluate import reconstruct as write

    write(settings)


def evaluate(settings: Evaluate) -> None:
    """Measure a codec or a MODEL on held-out images."""
    from vq_prior.evaluate import evaluate as measure

    measure(settings)


def verify(settings: Verify) -> None:
    """Check every byte of an artefact."""
    from vq_prior.verify import verify as check

    for line in check(settings.path):
        print(line)


def env(_settings: Env) -> None:
    """Print what a bug report needs."""
    import os
    import platform
    from importlib.metadata import version

    import torch

    from vq_prior import __version__

    print(f"vq-prior {__version__}")
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("torch", "transformers", "accelerate", "datasets", "safetensors", "huggingface_hub", "numpy", "tyro"):
        print(f"{name} {version(name)}")
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    print(f"devices: {', '.join(devices) or 'cpu only'}")
    print(f"cores {os.cpu_count()}, torch threads {torch.get_num_threads()}")
