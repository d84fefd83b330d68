"""What `vq-prior train --minutes M` chooses, as pure functions of what was measured.

A recipe is a codec with the prior that goes with it; `RECIPES` holds them, the best first, and the first one whose
steps fit into the minutes is taken. Letters: N rows, T tokens of a row.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stage1_vqvae.settings import TINY
from vq_prior.core.errors import UsageError

AIM = 0.95  # share of the minutes that is planned for: what is not foreseen has the rest
CODEC_SHARE, CODEC_SHARE_OF_STEPS = 0.3, 0.4  # at most, of the minutes, and of what is left for steps of both stages
LEAST_STEPS = 300  # of either stage: with fewer, samples show nothing
FEWEST_IMAGES, MOST_IMAGES = 500, 10_000  # drawn and compared by the evaluation
IMAGES_SHARE = 0.12  # of what is left after the codes, for what each compared image costs
MEASURING_SHARE = 0.06  # of the prior's training, for measurements on held-out rows
EPOCHS, EPOCHS_TUNED = 13, 5  # of a prior: beyond, it learns by heart (docs/log/2026-11-22-few-pictures.md)
STARTS = 4.0  # seconds to begin and end the parts: networks and folders that are opened and closed
DRAWN_BESIDE = 250  # rows drawn for samples.png and the page
DRAW_OF_STEP = 3.0  # a row drawn, in rows of a training step, as long as it has not been measured


@dataclass(frozen=True)
class Recipe:
    """A codec and the prior that goes with it.

    Attributes:
        name: Of it.
        codec: Settings of train-vqvae beside the defaults, as JSON.
        prior: Settings of train-prior beside the defaults, as JSON.
        why: What speaks for it, in words.
        above: Pixels that the longer side of pictures must have more of; None suits every kind of data.
    """

    name: str
    codec: Mapping[str, Any]
    prior: Mapping[str, Any]
    why: str
    above: int | None = None

    def suits(self, kind: str, shape: tuple[int, ...]) -> bool:
        """Return whether it is for data of this kind and shape."""
        return self.above is None or (kind == "pictures" and max(shape) > self.above)


DEFAULTS = Recipe("grid", {}, {}, "one grid of codes")
RECIPES = (
    Recipe(
        "sharp",
        {"quantizer": {"depth": 2}, "loss": {"perceptual": "own"}},
        {"model": {"depth_blocks": 1}},
        "two levels of codes keep more of a picture, a perceptual loss its texture, and a head over depth draws both "
        "in the time of one",
        above=TINY,
    ),
    Recipe(
        "residual",
        {"quantizer": {"depth": 2}},
        {"model": {"depth_blocks": 1}},
        "two levels of codes keep more of a picture, and a head over depth draws both in the time of one",
        above=TINY,
    ),
    DEFAULTS,
    Recipe("small", {"model": {"width": 64}}, {"size": "tiny"}, "one grid of codes by the smallest networks"),
)


@dataclass(frozen=True)
class Sizes:
    """Of the work.

    Attributes:
        num_train: Rows to train on.
        num_held_out: Rows held out.
        labelled: Whether they have classes.
        num_fitted: Rows that the evaluation fits its network to.
        fit_steps: Steps of that.
    """

    num_train: int
    num_held_out: int
    labelled: bool
    num_fitted: int
    fit_steps: int

    def most_images(self) -> int:
        """Return the images that an evaluation can compare at most."""
        return min(MOST_IMAGES, self.num_train)


@dataclass(frozen=True)
class Rates:
    """Seconds that were measured; see docs/formats.md.

    Attributes:
        open: To open the data.
        read: To read a row.
        encode: To encode a row.
        decode: To decode a row.
        codec_begin: Until the first step of the codec: a perceptual term that is fitted.
        codec_step: Of an optimiser step of the codec.
        prior_begin: Until the first step of the prior.
        prior_step: Of an optimiser step of the prior.
        measure: Of a measurement on held-out rows.
        choose: To choose the sampling settings.
        draw: To draw a row.
        fit_step: Of a step of the evaluation's network.
        judge: To see a row through that network.
    """

    open: float
    read: float
    encode: float
    decode: float
    codec_begin: float
    codec_step: float
    prior_begin: float
    prior_step: float
    measure: float
    choose: float
    draw: float
    fit_step: float
    judge: float

    def named(self) -> dict[str, float]:
        """Return the seconds by name."""
        return asdict(self)


@dataclass(frozen=True)
class Candidate:
    """A recipe and what it was measured to take here.

    Attributes:
        recipe: It.
        rates: Of it.
        default_steps: Of its codec where nothing is said.
        prior_steps: Of its prior where nothing is said.
        prior_batch: Rows of a step of its prior.
    """

    recipe: Recipe
    rates: Rates
    default_steps: int
    prior_steps: int = 0
    prior_batch: int = 32


@dataclass(frozen=True)
class CodecChoice:
    """The candidate that was taken.

    Attributes:
        candidate: It.
        steps: Of its codec.
        prior_steps: That its prior will have about.
        passed: Why each better one was not taken, in words.
    """

    candidate: Candidate
    steps: int
    prior_steps: int
    passed: tuple[str, ...]


@dataclass(frozen=True)
class PriorChoice:
    """Steps of the prior, steps between two measurements, images compared (0: none), and the seconds it all takes."""

    steps: int
    eval_every: int
    num_images: int
    seconds: dict[str, float] = field(default_factory=dict)


def before_prior(r: Rates, sizes: Sizes) -> float:
    """Return the seconds of the codec's training beside its steps, and of the codes."""
    rows = sizes.num_train + sizes.num_held_out
    return (
        r.codec_begin + 2 * (r.open + rows * r.read) + rows * r.encode + 2 * sizes.num_held_out * (r.encode + r.decode)
    )


def evaluation(r: Rates, sizes: Sizes, num_images: int) -> float:
    """Return the seconds of `evaluate` with so many images; none where there are none."""
    if not num_images:
        return 0.0
    reading = r.open + r.read * (sizes.num_held_out + num_images + sizes.num_fitted)
    fits = (2 if sizes.labelled else 1) * sizes.fit_steps * r.fit_step
    held_out = sizes.num_held_out * (3 * (r.encode + r.decode + r.judge))
    return reading + fits + held_out + num_images * of_image(r)


def of_image(r: Rates) -> float:
    """Return the seconds that one more compared image costs: its sample, its reconstruction, and itself."""
    return r.read + r.draw + r.encode + 2 * r.decode + 4 * r.judge


def ending(r: Rates, sizes: Sizes, num_images: int) -> float:
    """Return the seconds from the last step of the prior to the end."""
    return r.choose + DRAWN_BESIDE * (r.draw + r.decode) + evaluation(r, sizes, num_images) + STARTS


def choose_codec(candidates: Iterable[Candidate], sizes: Sizes, *, minutes: float, spent: float) -> CodecChoice:
    """Return the first candidate of which both stages get enough steps, and the steps of its codec.

    Args:
        candidates: The best first; one is asked for where those before it do not fit.
        sizes: Of the work.
        minutes: That the whole may take.
        spent: Seconds of them that are over.

    Raises:
        UsageError: If the minutes are too few for any; names the least.
    """
    seen: list[Candidate] = []
    passed: list[str] = []
    fewest = min(FEWEST_IMAGES, sizes.most_images())
    for candidate in candidates:
        seen.append(candidate)
        steps, prior_steps, _ = _steps(candidate, sizes, fewest, minutes=minutes, spent=spent)
        if min(steps, prior_steps) >= LEAST_STEPS:
            return CodecChoice(candidate, steps, prior_steps, tuple(passed))
        passed.append(
            f"{candidate.recipe.name} would have {steps} steps of its codec and {prior_steps} of its prior, "
            f"and needs {LEAST_STEPS} of each"
        )
    least: list[float] = []
    for candidate in seen:
        steps, prior_steps, needed = _steps(candidate, sizes, 0, minutes=minutes, spent=spent)
        if min(steps, prior_steps) >= LEAST_STEPS:
            return CodecChoice(candidate, steps, prior_steps, ("there is no time for the evaluation",))
        least.append(needed)
    raise UsageError(
        f"--minutes must be at least {up_to_tenths(min(least))} for this data on this machine, got {minutes:g}; "
        "give more, or take fewer images by --max-images"
    )


def _steps(
    candidate: Candidate, sizes: Sizes, num_images: int, *, minutes: float, spent: float
) -> tuple[int, int, float]:
    """Return the steps of codec and prior that fit, and the minutes in which the least would."""
    r = candidate.rates
    fixed = spent + before_prior(r, sizes) + 2 * r.prior_begin + ending(r, sizes, num_images)
    of_prior = r.prior_step * (1 + MEASURING_SHARE)
    budget = AIM * 60 * minutes - fixed
    most = min(CODEC_SHARE * 60 * minutes, CODEC_SHARE_OF_STEPS * budget)
    steps = min(candidate.default_steps, down(most / r.codec_step, 50))
    prior_steps = down((budget - steps * r.codec_step) / of_prior, 10)
    both = LEAST_STEPS * r.codec_step + (LEAST_STEPS + 10) * of_prior  # steps are rounded down
    needed = max(LEAST_STEPS * r.codec_step / CODEC_SHARE_OF_STEPS, both)
    of_share = LEAST_STEPS * r.codec_step / CODEC_SHARE
    return steps, prior_steps, max(of_share, (needed + fixed) / AIM) / 60


def choose_prior(
    r: Rates, sizes: Sizes, *, left: float, most_steps: int, done: int = 0, eval_every: int | None = None
) -> PriorChoice:
    """Return the steps of the prior and the images of the evaluation that fit into what is left.

    Args:
        r: Measured on the codes.
        sizes: Of the work.
        left: Seconds.
        most_steps: More would not make it better.
        done: Steps that are done.
        eval_every: Steps between two measurements, where a run has them already; None chooses.
    """
    every = eval_every or measured_every(r)
    of_measuring = (r.measure + 40 * (r.draw + r.decode) / 5) / every  # and a sample grid at every fifth
    num_images = min(FEWEST_IMAGES, sizes.most_images())
    more = int(max(0.0, IMAGES_SHARE * left) / of_image(r))
    if more > num_images:
        num_images = sizes.most_images() if more >= sizes.most_images() else max(num_images, down(more, 100))
    for images in (num_images, 0):
        beside = r.prior_begin + ending(r, sizes, images)
        steps = done + down((left - beside) / (r.prior_step + of_measuring), 10)
        if steps >= min(done + LEAST_STEPS, most_steps):
            break
    steps = max(done, min(steps, most_steps))
    seconds = {"prior": (steps - done) * (r.prior_step + of_measuring) + r.prior_begin, "end": beside - r.prior_begin}
    return PriorChoice(steps, every, images, seconds)


def measured_every(r: Rates) -> int:
    """Return the steps between two measurements: a hundred, or as many as keep measuring to its share of the time.

    >>> measured_every(Rates(*[0.0] * 7, prior_step=0.1, measure=1.0, choose=0.0, draw=0.0, fit_step=0.0, judge=0.0))
    200
    """
    needed = r.measure / (MEASURING_SHARE * r.prior_step)
    return max(100, -(-int(needed) // 100) * 100)


def most_prior_steps(default_steps: int, num_rows: int, batch_size: int, *, tuned: bool) -> int:
    """Return the steps beyond which a prior of so many rows only learns them by heart.

    >>> most_prior_steps(3000, 47_500, 32, tuned=False), most_prior_steps(700, 1708, 32, tuned=False)
    (19296, 700)
    """
    return max(default_steps, (EPOCHS_TUNED if tuned else EPOCHS) * num_rows // batch_size)


def down(number: float, multiple: int) -> int:
    """Return the largest multiple that is not above a number, at least 0.

    >>> down(1234.5, 50), down(-3.0, 10)
    (1200, 0)
    """
    return max(0, int(number // multiple)) * multiple


def up_to_tenths(minutes: float) -> str:
    """Return minutes rounded up, to tenths below ten and whole ones above.

    >>> up_to_tenths(1.234), up_to_tenths(12.3)
    ('1.3', '13')
    """
    return f"{-int(-minutes * 10 // 1) / 10:g}" if minutes < 10 else str(-int(-minutes // 1))
