"""Settings of the commands of the top: what a user types. Imports neither torch nor transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from stage1_vqvae.modalities.pictures.settings import CodecSize, PictureSize
from stage2_prior.sampling_settings import Sampling
from vq_prior.core.modality import KindSettings
from vq_prior.core.settings import (
    DATA_HELP,
    DryRun,
    ImageColumn,
    LabelColumn,
    NumWorkers,
    Once,
    Overwrite,
    Place,
    Seed,
    Settings,
    Sheet,
    Within,
)

MODEL_HELP = tyro.conf.arg(help="MODEL folder, or Hub id owner/name[@revision].")
CODEC_HELP = tyro.conf.arg(help="Codec folder, RUN, or Hub id owner/name[@revision].")


@dataclass
class Quickstart:
    """Train both stages on the handwritten digits and draw ten of each."""

    out: Path = Path("runs/quickstart")
    """Folder of the run; OUT/model and OUT/samples.png are what it ends in."""
    seed: int = 0
    """Seed of both trainings and of the samples."""
    overwrite: bool = False
    """Start anew instead of continuing what is in OUT."""


@dataclass
class Train(PictureSize, KindSettings, Settings):
    """From images to new images in one command: train both stages, draw samples, measure, and write a page about it."""

    data: Annotated[str, Place(), DATA_HELP]
    out: Annotated[Path | None, Place("RUN")] = None
    """RUN folder; OUT/model is what it ends in. Rerunning the command continues it. Left out: runs/NAME-OF-DATA."""
    minutes: Annotated[float | None, Within(0, 10**6, above=True), Once()] = None
    """Minutes that the whole may take: codec, sizes and steps are chosen for them, from what this machine was measured
    to do, and written to OUT/plan.json. More minutes for a finished OUT train on. Left out: the defaults of each
    training."""
    from_model: Annotated[str | None, Place("MODEL"), tyro.conf.arg(name="from")] = None
    """MODEL (folder, RUN or Hub id) to start from: its codec stays, its prior is fine-tuned."""
    seed: Seed = 0
    """Seed of both trainings, of the samples and of the measurement."""
    num_workers: NumWorkers = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    overwrite: Overwrite = False
    """Start anew instead of continuing what is in OUT."""
    dry_run: DryRun = False
    """Print the plan, from rates that are measured, and write nothing."""


@dataclass
class Assemble:
    """Join a codec and a prior that was trained on its codes into one MODEL folder."""

    codec: Path
    """Codec folder, RUN, MODEL, or Hub id owner/name[@revision]."""
    prior: Path
    """Prior folder, RUN, MODEL, or Hub id owner/name[@revision]."""
    out: Path
    """MODEL folder to write."""
    overwrite: bool = False
    """Replace the MODEL that is at OUT."""


@dataclass(kw_only=True)
class SampleSettings(Sampling):
    """What every command that draws takes."""

    seed: int = 0
    """Seed of the whole set; sample i is the same in every set with this seed."""
    batch_size: int | None = None
    """Images drawn at once by each process; left out: chosen for the device."""


@dataclass(kw_only=True)
class Drawing(SampleSettings):
    """What every command that draws images into a folder takes."""

    model: Annotated[Path, MODEL_HELP]
    out: Path
    """Folder for 000000.png ... and samples.json; a sheet of them all is written beside it, OUT.png."""
    sheet: Sheet = None
    num_images: Annotated[int, tyro.conf.arg(aliases=["--num-samples"])] = 16
    """How many images, or samples of another kind."""
    labels: str | None = None
    """Classes by name or index, separated by commas; sample i gets labels[i mod n]. An index is index:1, or a bare
    number where no name of a class looks like one. Left out: every class in turn."""
    unconditional: bool = False
    """Draw every sample without a class, from a model that has classes; not with --labels."""
    overwrite: bool = False
    """Replace the samples that are at OUT."""


@dataclass(kw_only=True)
class Generate(Drawing):
    """Draw new images. What is drawn depends on the model, the seed and the settings, never on batch or processes."""

    reject_with: str | None = None
    """Image classifier of transformers, a folder or Hub id: of 1/KEEP candidates for each image, the one it gives the
    highest probability of its class is kept."""
    given: Path | None = None
    """Code store, for a prior that does not draw every level: sample i gets the given levels of held-out row i mod n of
    it, and that row's class unless --labels or --unconditional says otherwise."""
    condition: Path | None = None
    """Values of the model's conditions by name: a .json object of lists, or a .npy array for a model of one condition.
    Sample i gets row i, one row is for all; a condition that is not named is left out."""
    keep: float | None = None
    """With --reject-with: the share of candidates that is kept, 1/m for a whole number m (0.5, 0.25, ...)."""


@dataclass(kw_only=True)
class Complete(Drawing):
    """Draw images that begin as a given picture does: the codes of its upper part are kept, the rest is drawn."""

    image: Path
    """The picture."""
    keep: float = 0.5
    """Share of the picture that is kept, from the top; whole rows of codes within it."""


@dataclass
class Score(KindSettings):
    """Tell how likely a MODEL finds the codes of each image: nats per token, bits per dimension, and where."""

    model: Annotated[Path, MODEL_HELP]
    data: str
    """Images: folder, parquet file, Hub id, or the word digits. Labels match the model's classes."""
    out: Path
    """Folder for scores.json and 000000.png ... (image left, map right); a sheet of the least likely is written beside
    it, OUT.png."""
    sheet: Sheet = None
    unconditional: bool = False
    """Score every image without a class, whatever its label."""
    num_workers: NumWorkers = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    overwrite: bool = False
    """Replace the scores that are at OUT."""


@dataclass(kw_only=True)
class Evaluate(KindSettings, SampleSettings):
    """Measure a codec, or the codec, prior and samples of a MODEL, against real images; OUT holds every number and all
    that it depends on."""

    data: str
    """Images: folder, parquet file, Hub id, or the word digits."""
    out: Path
    """JSON file to write."""
    codec: Annotated[Path | None, CODEC_HELP] = None
    model: Annotated[Path | None, MODEL_HELP] = None
    num_images: Annotated[int, tyro.conf.arg(aliases=["--num-samples"])] = 10_000
    """Training images that reconstructions and samples are compared with, and samples drawn; all, if there are
    fewer."""
    evaluator: str = "own"
    """Network whose features are compared: own (small, fitted to the data by this command, no download), dinov2, or an
    image model of transformers, a folder or Hub id."""
    lpips: Literal["none", "alex", "vgg", "squeeze"] = "none"
    """Network of the perceptual distance LPIPS; its weights come from torchvision."""
    num_workers: NumWorkers = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None


@dataclass(kw_only=True)
class Doctor(KindSettings):
    """Examine a codec, codes, a prior or a MODEL, and say in words what is wrong with it and what to do."""

    codec: Annotated[Path | None, CODEC_HELP] = None
    codes: Path | None = None
    """Code store."""
    prior: Path | None = None
    """Prior folder, RUN, or Hub id owner/name[@revision]."""
    model: Annotated[Path | None, MODEL_HELP] = None
    data: str | None = None
    """Images: folder, parquet file, Hub id, or the word digits. Left out, like the codes: what the examined part was
    made from, if it is still there."""
    out: Path | None = None
    """JSON file for what was measured."""
    num_workers: NumWorkers = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None


@dataclass(kw_only=True)
class Export(CodecSize):
    """Write a codec's encoder and decoder as files that other programs run, checked against the codec."""

    codec: Path
    """Codec folder, RUN, MODEL, or Hub id owner/name[@revision]."""
    out: Path
    """Folder to write: encode and decode, and export.json, which says what goes in and comes out."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx: for onnxruntime and others (extra `export`). torch: programs of torch.export."""
    overwrite: bool = False
    """Replace the export that is at OUT."""


@dataclass
class App:
    """Serve a page that draws, reconstructs, completes and paints with a MODEL, or that compares two, on this machine
    alone by default."""

    model: Annotated[Path | None, MODEL_HELP] = None
    compare: tuple[Path, Path] | None = None
    """Two MODELs whose samples a person chooses between, pair by pair, without being told whose they are."""
    votes: Path | None = None
    """With --compare: JSON file of the votes, written after each; one that is there goes on. Left out: votes.json."""
    seed: int | None = None
    """With --compare: seed of the samples and of their sides; left out: that of the votes, else 0."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 lets other machines in."""
    port: int = 7860
    """Port to listen at; 0 takes a free one."""


@dataclass
class Report:
    """Write one page (HTML, no network, no script) of what a run learnt: a verdict, samples, curves, settings."""

    run: Annotated[Path, tyro.conf.Positional]
    """RUN folder."""
    out: Path | None = None
    """File to write; left out: RUN/report.html."""
    follow: bool = False
    """Write it anew while RUN is being trained, until it is whole; Ctrl-C ends that."""


@dataclass(kw_only=True)
class Sending:
    """What every command that sends something to the Hub takes."""

    repo_id: str
    """Repository owner/name; made if it does not exist."""
    private: bool = False
    """Make a new repository private."""
    revision: str | None = None
    """Branch to commit to; left out: main."""
    create_pr: bool = False
    """Open a pull request instead of committing."""
    license: str | None = None
    """Licence for the card, as the Hub writes it (apache-2.0, cc-by-4.0, ...)."""


@dataclass
class Push(Sending):
    """Send a MODEL (or a codec or prior alone) to the Hugging Face Hub, as one commit with its card and samples."""

    model: Path
    """MODEL folder, or the folder of a codec or a prior."""


@dataclass
class Pull:
    """Fetch a MODEL, codec or prior from the Hugging Face Hub into a folder, whole or not at all."""

    repo_id: Annotated[str, tyro.conf.Positional]
    """Repository owner/name, or owner/name@revision."""
    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace the artefact that is at OUT."""


@dataclass
class PushCodes(Sending):
    """Send a code store to the Hugging Face Hub as a data set of parquet files, as one commit with its card."""

    codes: Annotated[Path, tyro.conf.Positional]
    """Code store."""


@dataclass
class Verify(KindSettings):
    """Check every byte of a MODEL, codec, prior, code store or training run."""

    path: Annotated[Path, tyro.conf.Positional]
    """The artefact."""
    codec: str | None = None
    """With a code store: the codec whose codes it must hold (folder, RUN, MODEL, or Hub id); a sample of the images is
    encoded again and compared."""
    data: str | None = None
    """With --codec: the images that the codes were extracted from; left out: where they came from, if they are still
    there."""
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    num_workers: NumWorkers = None


@dataclass
class Fingerprint:
    """Print one hash of what an artefact is: equal for equal runs, whenever, wherever and in how many goes made."""

    path: Annotated[Path, tyro.conf.Positional]
    """The artefact, or a RUN."""


@dataclass
class Env:
    """Print versions, devices and threads, for bug reports."""
