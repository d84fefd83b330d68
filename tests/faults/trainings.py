"""Tiny trainings of both stages that the tests of faults cut, kill and poison; importable in launched processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.settings import ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae
from stage2_prior.settings import PriorModel, TrainPrior
from stage2_prior.train import train_prior
from vq_prior.core.errors import Stopped
from vq_prior.core.processes import control


def train(stage: str, out: Path, codes: Path, **changes: Any) -> None:
    """Train a codec on digits ("codec") or a prior on codes ("prior"); at defaults that differ in nothing but size."""
    if stage == "codec":
        settings = TrainVQVAE(
            "digits",
            out,
            steps=60,
            batch_size=16,
            checkpoint_every=25,
            log_every=7,
            warmup_steps=5,
            num_workers=1,
            model=ModelSettings(width=16, num_residual_blocks=1),
            quantizer=QuantizerSettings(num_codes=32, code_dim=4, decay=0.8, revive_below=0.2),
        )
        train_vqvae(replace(settings, **changes))
    else:
        train_prior(
            replace(
                TrainPrior(
                    codes,
                    out,
                    steps=60,
                    batch_size=16,
                    checkpoint_every=25,
                    log_every=7,
                    eval_every=14,
                    warmup_steps=5,
                    model=PriorModel(num_layers=2, hidden_size=16, num_heads=2),
                ),
                **changes,
            )
        )


@contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """Ask the training inside to stop at the boundary after so many steps of its own, as a signal would."""
    asked = control.Control.agreed
    steps = iter(range(1, 10**9))
    control.Control.agreed = lambda _: control.StepRequest(*[next(steps) == step] * 2)  # type: ignore[method-assign]
    try:
        yield
    except Stopped:
        pass
    finally:
        control.Control.agreed = asked  # type: ignore[method-assign]


def train_in_goes(stage: str, out: Path, codes: Path, lengths: list[int], **changes: Any) -> None:
    """Train, interrupted after each of these numbers of steps."""
    for length in lengths:
        with stopped_after(length):
            train(stage, out, codes, **changes)
    train(stage, out, codes, **changes)
