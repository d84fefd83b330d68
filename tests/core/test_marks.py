"""Marks on settings: ranges, places, what may change, former names of flags."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest

from stage1_vqvae.resize_settings import ResizeCodebook
from stage1_vqvae.settings import ExtractCodes, TrainVQVAE
from stage2_prior.settings import TrainPrior
from vq_prior.cli import parse
from vq_prior.core.errors import UsageError
from vq_prior.core.settings import Free, Once, Place, Within, check_ranges, names_marked, settings_in


@dataclass
class Inner:
    width: Annotated[int | None, Within(8, 64, multiple=8)] = None


@dataclass
class Outer:
    steps: Annotated[int, Within(1)] = 1
    rate: Annotated[float, Within(0, 10, above=True)] = 1.0
    shares: Annotated[tuple[float, ...], Within(0, 1, below=True)] = ()
    model: Inner = field(default_factory=Inner)
    name: str = "x"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (Outer(steps=0), "--steps must be at least 1, got 0; change it or leave it out"),
        (Outer(rate=0.0), "--rate must be a number above 0, at most 10, got 0.0"),
        (Outer(rate=math.nan), "--rate must be a number above 0, at most 10, got nan"),
        (Outer(rate=math.inf), "--rate must be a number above 0, at most 10, got inf"),
        (Outer(shares=(0.5, 1.0)), "--shares must be at least 0 and below 1, got 1.0"),
        (Outer(model=Inner(width=12)), "--model.width must be a multiple of 8 from 8 to 64, got 12"),
    ],
)
def test_a_number_out_of_its_range_is_named_with_what_is_allowed(settings, line):
    with pytest.raises(UsageError, match=line):
        check_ranges(settings)


def test_what_lies_in_its_range_passes_the_ends_too():
    check_ranges(Outer(steps=10**12, rate=10.0, shares=(0.0, 0.999), model=Inner(width=64)))
    check_ranges(Outer())


def test_every_number_of_a_training_has_a_range():
    """A number without one is a number that nobody checks."""
    # Checked by hand: what the network can take in steps; what the kind of data has.
    alone = {"model.downsampling", "model.channels"}
    for settings_class in (TrainVQVAE, TrainPrior, ExtractCodes, ResizeCodebook):
        kinds = (int, float, int | None, float | None)
        unchecked = {each.name for each in settings_in(settings_class) if each.kind in kinds and not each.mark(Within)}
        assert unchecked <= alone


def test_what_a_continued_run_may_change_is_what_it_always_was():
    once = {"overwrite", "dry_run", "accept_changes"}
    same = {"gradient_accumulation_steps", "log_every", "threads", "shard_cache_mib"}
    free = {"num_workers", "checkpoint_every", "fail_on_collapse", "report_to", "data", "out", "from_codec"} | same
    assert names_marked(TrainVQVAE, Free, Place, Once) == free | once
    free = {"checkpoint_every", "report_to", "fsdp", "data", "out", "codes", "codec", "from_model"} | same
    free |= {"gradient_checkpointing", "sample_every"}
    assert names_marked(TrainPrior, Free, Place, Once) == free | once


@pytest.mark.parametrize("flag", ["--max-gradient-norm", "--max-grad-norm", "--max_grad_norm"])
def test_the_former_name_of_a_flag_is_still_read(flag):
    settings = parse(["train-prior", "--codes", "codes", "--out", "run", flag, "0.25"]).settings
    assert settings.max_grad_norm == 0.25
    assert parse(["train-prior", "--codes", "codes", "--out", "run", f"{flag}=0.5"]).settings.max_grad_norm == 0.5


def test_help_shows_the_name_of_today_alone(capsys):
    with pytest.raises(SystemExit):
        parse(["train-prior", "--help"])
    shown = capsys.readouterr().out
    assert "--max-gradient-norm" in shown
    assert "max-grad-norm" not in shown


@pytest.mark.parametrize("settings_class", [TrainVQVAE, TrainPrior, ExtractCodes, ResizeCodebook])
def test_where_something_lies_is_a_place(settings_class):
    paths = {each.name for each in settings_in(settings_class) if each.kind in (Path, Path | None)}
    if settings_class is not ExtractCodes:  # makes no record and no run
        assert paths <= names_marked(settings_class, Place)
