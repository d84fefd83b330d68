"""`vq-prior quickstart`: `train --data digits`, in about forty seconds on two cores."""

from vq_prior.cli.train import train
from vq_prior.settings import Quickstart, Train


def quickstart(settings: Quickstart) -> None:
    """Train both stages, join them into OUT/model, draw OUT/samples.png (ten of each digit), write OUT/report.html."""
    # Nothing is measured: that takes longer than the prior's training, and a first look needs no number.
    train(Train(data="digits", out=settings.out, seed=settings.seed, overwrite=settings.overwrite), evaluated=False)
