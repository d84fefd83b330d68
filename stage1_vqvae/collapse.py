"""Watching the use of the codebook while it trains, and what to do about one that has collapsed."""

from stage1_vqvae.settings import TrainVQVAE
from vq_prior.core.errors import NumericError
from vq_prior.core.spec import LevelSpec
from vq_prior.core.training.runs import RunLog

COLLAPSED = 0.1  # share of the codes below which a codebook is called collapsed


def named_use(uses: list[dict[str, float]]) -> dict[str, float]:
    """Return what `CodeCounts.read` found as numbers of a log line: `usage`, or `usage.0` ... of several levels."""
    several = len(uses) > 1
    return {f"{name}.{n}" if several else name: value for n, use in enumerate(uses) for name, value in use.items()}


def remedy(settings: TrainVQVAE) -> str:
    """Return what to do about a codebook of which little is used."""
    q = settings.quantizer
    if q.name in ("ema", "nearest", "gumbel") and q.revive_below is None:
        return "revive dead codes: --quantizer.revive-below 0.05"
    if q.name in ("ema", "nearest", "simvq", "gumbel") and q.start is None:
        return "start the codes on the data: --quantizer.start kmeans"
    if q.name == "lfq":
        return "raise --loss.entropy-weight, or take --quantizer.name ema"
    if q.name == "gumbel":
        return "raise --loss.kl-weight, or take --quantizer.name ema"
    return f"take fewer --quantizer.num-codes than {q.num_codes}, a lower --learning-rate, or more --steps"


def watch(
    uses: list[dict[str, float]],
    levels: tuple[LevelSpec, ...],
    num_images: int,
    done: int,
    settings: TrainVQVAE,
    log: RunLog,
) -> None:
    """Warn of each level whose log interval used fewer than 10% of the codes, or of the vectors if these are fewer.

    Args:
        uses: What `CodeCounts.read` found over the interval.
        levels: Whose codes these are.
        num_images: Images of the interval.
        done: Optimiser steps taken.
        settings: Resolved; with `fail_on_collapse` the training ends after its warm-up.
        log: Of the run.

    Raises:
        NumericError: If the training is to end.
    """
    for number, (use, level) in enumerate(zip(uses, levels, strict=True)):
        possible = min(level.num_codes, num_images * level.num_tokens)
        used = level.num_codes - int(use["num_dead"])
        if used >= COLLAPSED * possible:
            continue
        of_level = f" of level {number}" if len(levels) > 1 else ""
        text = f"only {used} of {level.num_codes} codes{of_level} were used over the last {num_images} images"
        text += f", up to step {done}"
        if settings.fail_on_collapse and done > settings.warmup_steps:
            log.close()
            raise NumericError(f"{text}; {remedy(settings)}, and start anew by --overwrite (--fail-on-collapse)")
        log.say(f"warning: {text}; {remedy(settings)}")
