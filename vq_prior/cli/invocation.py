"""The commands, and what one parsed command line is."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command: where its settings live (`module:name`), what it does, and whether it shares the work among
    processes. Its code is the function of its name in `commands.py`."""

    settings: str
    summary: str
    parallel: bool = False


COMMANDS = {
    "quickstart": Command(
        "vq_prior.settings:Quickstart",
        "train both stages on digits, draw samples",
    ),
    "train": Command("vq_prior.settings:Train", "images -> both stages, samples, measures (RUN)", True),
    "check-data": Command(
        "stage1_vqvae.settings:CheckData",
        "find every bad image before a training does",
    ),
    "train-vqvae": Command("stage1_vqvae.settings:TrainVQVAE", "images -> codec (RUN/vqvae)", True),
    "extract-codes": Command(
        "stage1_vqvae.settings:ExtractCodes",
        "codec and images -> code store",
        True,
    ),
    "train-prior": Command("stage2_prior.settings:TrainPrior", "code store -> prior (RUN/prior)", True),
    "assemble": Command("vq_prior.settings:Assemble", "codec and prior -> MODEL"),
    "generate": Command("vq_prior.settings:Generate", "MODEL -> new images", True),
    "complete": Command("vq_prior.settings:Complete", "MODEL and a picture's top -> images", True),
    "score": Command("vq_prior.settings:Score", "MODEL and images -> likelihood of each", True),
    "reconstruct": Command("stage1_vqvae.settings:Reconstruct", "images -> codec -> images"),
    "resize-codebook": Command(
        "stage1_vqvae.resize_settings:ResizeCodebook",
        "codec -> codec with fewer or more codes",
    ),
    "evaluate": Command("vq_prior.settings:Evaluate", "measure a codec or a MODEL"),
    "doctor": Command("vq_prior.settings:Doctor", "say what is wrong and what to do"),
    "export": Command("vq_prior.settings:Export", "codec -> files that other programs run"),
    "app": Command("vq_prior.settings:App", "MODEL -> a page in the browser"),
    "report": Command("vq_prior.settings:Report", "RUN -> one page of what it learnt"),
    "push": Command("vq_prior.settings:Push", "MODEL -> Hugging Face Hub"),
    "pull": Command("vq_prior.settings:Pull", "Hugging Face Hub -> MODEL"),
    "push-codes": Command("vq_prior.settings:PushCodes", "code store -> Hub data set"),
    "verify": Command("vq_prior.settings:Verify", "check every byte of an artefact"),
    "fingerprint": Command("vq_prior.settings:Fingerprint", "one hash of what an artefact is"),
    "env": Command("vq_prior.settings:Env", "print versions and devices"),
}


@dataclass
class Invocation:
    """A parsed command line.

    Attributes:
        command: Name of the command.
        settings: Its dataclass of settings.
        words: The words after the command, without `--num-processes`.
        num_processes: Processes to start; None runs in this one.
        debug: Whether errors show their traceback.
    """

    command: str
    settings: Any
    words: list[str] = field(default_factory=list)
    num_processes: int | None = None
    debug: bool = False
