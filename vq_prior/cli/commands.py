"""What each command does, from settings to printed result. Heavy imports happen here, when a command runs."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vq_prior.settings import (
    App,
    Assemble,
    Complete,
    Doctor,
    Env,
    Evaluate,
    Export,
    Fingerprint,
    Generate,
    Pull,
    Push,
    PushCodes,
    Quickstart,
    Report,
    Score,
    Sending,
    Train,
    Verify,
)

if TYPE_CHECKING:
    from stage1_vqvae.resize_settings import ResizeCodebook
    from stage1_vqvae.settings import CheckData, ExtractCodes, Reconstruct, TrainVQVAE
    from stage2_prior.settings import TrainPrior


def quickstart(settings: Quickstart) -> None:
    """Train both stages on digits and draw samples."""
    from vq_prior.cli.quickstart import quickstart as run

    run(settings)


def train(settings: Train) -> None:
    """Go the whole road from images to a MODEL, its samples and its measures."""
    import time

    began = time.monotonic()  # what follows imports for seconds, and they count
    from vq_prior.cli.train import train as run

    run(settings, began=began)


def check_data(settings: "CheckData") -> None:
    """Look at every image of a data set."""
    from stage1_vqvae.data.check import check_data as check

    check(settings)


def train_vqvae(settings: "TrainVQVAE") -> None:
    """Train a codec into RUN/vqvae."""
    from stage1_vqvae.train import train_vqvae as train
    from vq_prior.model.inputs import fetch_once

    if settings.from_codec is not None:
        fetch_once(settings.from_codec)
    train(settings)


def extract_codes(settings: "ExtractCodes") -> None:
    """Write the code store of a data set."""
    from stage1_vqvae.extract import extract_codes as extract
    from vq_prior.model.inputs import fetch_once

    fetch_once(settings.codec)
    extract(settings)


def train_prior(settings: "TrainPrior") -> None:
    """Train a prior into RUN/prior; with a codec also join both into RUN/model."""
    from vq_prior.cli.train_prior import train_prior as train

    train(settings)


def assemble(settings: Assemble) -> None:
    """Join a codec and a prior into a MODEL."""
    from vq_prior.core.disk.components import find_component
    from vq_prior.model.folder import assemble as join
    from vq_prior.model.inputs import fetch_codec, fetch_once

    codec, prior = fetch_codec(settings.codec), find_component(fetch_once(settings.prior), "prior")
    model = join(codec, prior, settings.out, overwrite=settings.overwrite)
    print(f"wrote {model}; next: vq-prior generate --model {model} --num-images 16 --out samples")


def generate(settings: Generate) -> None:
    """Draw images into a folder."""
    from vq_prior.draw.sampler import generate as draw
    from vq_prior.model.inputs import fetch_once

    classifier = settings.reject_with and str(fetch_once(settings.reject_with))
    draw(replace(settings, model=fetch_once(settings.model), reject_with=classifier))


def complete(settings: Complete) -> None:
    """Draw images that begin as a picture does into a folder."""
    from vq_prior.draw.sampler import complete as draw
    from vq_prior.model.inputs import fetch_once

    draw(replace(settings, model=fetch_once(settings.model)))


def score(settings: Score) -> None:
    """Write the likelihood of each image into a folder."""
    from vq_prior.draw.score import score as write
    from vq_prior.model.inputs import fetch_once

    write(replace(settings, model=fetch_once(settings.model)))


def reconstruct(settings: "Reconstruct") -> None:
    """Write images beside their reconstructions."""
    from stage1_vqvae.evaluate import reconstruct as write
    from vq_prior.model.inputs import fetch_once

    fetch_once(settings.codec)
    write(settings)


def resize_codebook(settings: "ResizeCodebook") -> None:
    """Give a codec another number of codes."""
    from stage1_vqvae.resize import resize_codebook as resize
    from vq_prior.model.inputs import fetch_once

    fetch_once(settings.codec)
    resize(settings)


def evaluate(settings: Evaluate) -> None:
    """Measure a codec or a MODEL on held-out images."""
    from vq_prior.judge.evaluate import evaluate as measure
    from vq_prior.model.inputs import fetch_once

    codec = settings.codec and fetch_once(settings.codec)
    measure(replace(settings, codec=codec, model=settings.model and fetch_once(settings.model)))


def doctor(settings: Doctor) -> None:
    """Examine artefacts and say what is wrong with them."""
    from vq_prior.judge.doctor import doctor as examine
    from vq_prior.model.inputs import fetch_once

    codec, prior, model = (path and fetch_once(path) for path in (settings.codec, settings.prior, settings.model))
    examine(replace(settings, codec=codec, prior=prior, model=model))


def export(settings: Export) -> None:
    """Write a codec for other programs."""
    from vq_prior.model.export import export as write
    from vq_prior.model.inputs import fetch_once

    write(replace(settings, codec=fetch_once(settings.codec)))


def app(settings: App) -> None:
    """Serve the page of a MODEL, or of a comparison of two."""
    import os

    from vq_prior.core.errors import EnvironmentFault
    from vq_prior.core.processes.packages import broken
    from vq_prior.model.inputs import fetch_once

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from vq_prior.app import app as serve
    except Exception as error:  # absent, or there and broken
        raise broken(error) or EnvironmentFault('the page needs gradio; run `pip install "vq-prior[app]"`') from error
    serve(replace(settings, model=settings.model and fetch_once(settings.model)))


def report(settings: Report) -> None:
    """Write the page of a RUN."""
    from vq_prior.judge.report import report as write

    write(settings)


def _sent_as(settings: Sending) -> dict[str, Any]:
    """Return what both ways of sending take beside what is sent and its repository."""
    return {
        "private": settings.private or None,
        "revision": settings.revision,
        "create_pr": settings.create_pr,
        "license_id": settings.license,
    }


def push(settings: Push) -> None:
    """Send a MODEL or a component to the Hub."""
    from vq_prior.model.index import kind_of
    from vq_prior.model.opening import open_artefact
    from vq_prior.model.share import push as send

    where = send(settings.model, settings.repo_id, open_whole=open_artefact, **_sent_as(settings))
    print(f"pushed {settings.model} as one commit: {where}")
    if kind_of(settings.model) == "model":
        print(f"next: vq-prior generate --model {settings.repo_id} --num-images 16 --out samples")


def pull(settings: Pull) -> None:
    """Fetch a MODEL or a component from the Hub."""
    from vq_prior.model.opening import open_artefact
    from vq_prior.model.share import pull as bring

    bring(settings.repo_id, settings.out, open_whole=open_artefact, overwrite=settings.overwrite)


def push_codes(settings: PushCodes) -> None:
    """Send a code store to the Hub."""
    from vq_prior.model.share import push_codes as send

    where = send(settings.codes, settings.repo_id, **_sent_as(settings))
    print(f"pushed {settings.codes} as one commit: {where}")
    print(f"next: vq-prior train-prior --codes {settings.repo_id} --out runs/mine")


def verify(settings: Verify) -> None:
    """Check every byte of an artefact."""
    from vq_prior.judge.verify import verify as check

    for line in check(settings.path):
        print(line)
    if settings.codec is not None:
        from vq_prior.judge.recode import recode

        print(recode(settings))


def fingerprint(settings: Fingerprint) -> None:
    """Print the hash of an artefact."""
    from vq_prior.judge.fingerprint import fingerprint as digest

    for line in digest(settings.path):
        print(line)


def env(_settings: Env) -> None:
    """Print what a bug report needs."""
    import os
    import platform
    from importlib.metadata import version

    import torch

    from stage1_vqvae.quantizers import QUANTIZERS
    from vq_prior import __version__
    from vq_prior.core.registry import plugins

    print(f"vq-prior {__version__}")
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("torch", "transformers", "accelerate", "datasets", "safetensors", "huggingface_hub", "numpy", "tyro"):
        print(f"{name} {version(name)}")
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    print(f"devices: {', '.join(devices) or 'cpu only'}")
    print(f"cores {os.cpu_count()}, torch threads {torch.get_num_threads()}")
    for plugin in plugins(QUANTIZERS):
        trouble = f": {plugin.trouble}" if plugin.trouble else ""
        print(f"plug-in {plugin.group} {plugin.name} of {plugin.package}{trouble}")
