"""Which of two MODELs draws what people prefer: blind pairs, votes in a file, and the share with its interval.

Pair i is sample i of both models, of the same class and seed; which of them stands left is a function of (seed, i). A
study does not end by itself: how many votes it takes should be settled before the first one, and how often its result
was looked at stands in the file.

Letters: n votes for one of the two, z normal quantile.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from vq_prior.core.config import from_json, pretty_json, read_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.locks import claim
from vq_prior.core.disk.places import make_folder, true_place
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.identity import file_sha256
from vq_prior.core.labels import one_form
from vq_prior.core.training.randomness import MAX_SEED, keyed_generator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vq_prior.model.pipeline import VQPriorPipeline

    Pixels = NDArray[np.uint8]

Choice = Literal["left", "equal", "right"]
Side = Literal["A", "B", "equal"]
CONFIDENCE = 0.95
AT_ONCE = 8  # pairs drawn together


@dataclass(frozen=True)
class Contender:
    """One of the two models: its name, what its bytes are, and the sampling settings it draws with."""

    name: str
    codec_id: str
    prior_sha256: str
    sampling: str


@dataclass(frozen=True)
class Vote:
    """What was chosen of one pair: its number, its class ("" without), who stood left, and who was preferred."""

    pair: int
    label: str
    left: Side
    preferred: Side


@dataclass(frozen=True)
class Votes:
    """The file of a study.

    Attributes:
        format_version: Of the file.
        a: The model A.
        b: The model B.
        seed: Of samples and sides.
        votes: In order; vote i is of pair i.
        looked_at: Numbers of votes at which the result was looked at.
    """

    format_version: int
    a: Contender
    b: Contender
    seed: int
    votes: tuple[Vote, ...] = ()
    looked_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Preference:
    """What the votes say: how many preferred each, how many neither, and the share for A among the decided.

    Attributes:
        a: Votes for A.
        b: Votes for B.
        equal: Votes for neither.
        share: a / (a + b); None where nothing was decided.
        low: Lower end of its 95% interval (Wilson 1927); 0 where nothing was decided.
        high: Upper end; 1 where nothing was decided.
    """

    a: int
    b: int
    equal: int
    share: float | None
    low: float
    high: float


def wilson(successes: int, n: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the ends of the score interval of a share (Wilson 1927): all p whose test statistic at the observed share
    is within the quantile z, |successes / n - p| <= z sqrt(p (1 - p) / n). (0, 1) where n is 0.

    Raises:
        UsageError: Unless 0 <= successes <= n and 0 < confidence < 1.
    """
    if not 0 <= successes <= n:
        raise UsageError(f"successes must be between 0 and n ({n}), got {successes}")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must lie between 0 and 1, got {confidence:g}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def preference(votes: Sequence[Vote]) -> Preference:
    """Return what votes say; those for neither count in no share."""
    a, b = (sum(vote.preferred == side for vote in votes) for side in ("A", "B"))
    return Preference(a, b, len(votes) - a - b, a / (a + b) if a + b else None, *wilson(a, a + b))


def left_of(seed: int, pair: int) -> Literal["A", "B"]:
    """Return which model stands left in a pair."""
    return "A" if keyed_generator(seed, pair, "sides of a pair").random() < 0.5 else "B"


@dataclass
class Study:
    """A study that is under way; every vote is on the disk before it counts.

    Attributes:
        a: The model A.
        b: The model B.
        path: The file of votes.
        state: What is in it.
    """

    a: "VQPriorPipeline"
    b: "VQPriorPipeline"
    path: Path
    state: Votes
    _drawn: dict[int, tuple["Pixels", "Pixels"]] = field(default_factory=dict, repr=False)

    @property
    def number(self) -> int:
        """The pair that is to be voted on."""
        return len(self.state.votes)

    def label(self, pair: int) -> str:
        """Return the class of a pair; "" without classes."""
        names = self.a.index.label_names
        return names[pair % len(names)] if names else ""

    def pair(self, pair: int) -> tuple["Pixels", "Pixels"]:
        """Return the left and the right picture of a pair, [height, width, C] uint8 each."""
        if pair not in self._drawn:
            first = pair - pair % AT_ONCE
            sides = [_pictures(model, self.a.index.label_names, self.state.seed, first) for model in (self.a, self.b)]
            self._drawn = {first + n: both for n, both in enumerate(zip(*sides, strict=True))}
        a, b = self._drawn[pair]
        return (a, b) if left_of(self.state.seed, pair) == "A" else (b, a)

    def vote(self, pair: int, choice: Choice) -> bool:
        """Write the vote of a pair and return True; return False, and write nothing, where it has one already."""
        if pair != self.number:
            return False
        left = left_of(self.state.seed, pair)
        right: Side = "B" if left == "A" else "A"
        preferred: Side = {"left": left, "right": right, "equal": "equal"}[choice]
        self._write(votes=(*self.state.votes, Vote(pair, self.label(pair), left, preferred)))
        return True

    def result(self) -> Preference:
        """Return what the votes say so far, and write down that it was looked at."""
        if self.number not in self.state.looked_at:
            self._write(looked_at=(*self.state.looked_at, self.number))
        return preference(self.state.votes)

    def in_words(self) -> str:
        """Return the result as a person reads it, with which model is which; it counts as looked at."""
        found, before = self.result(), [number for number in self.state.looked_at if number < self.number]
        lines = [f"A is {self.state.a.name}, B is {self.state.b.name}."]
        if found.share is None:
            lines.append(f"Nothing is decided: {found.equal} votes for neither.")
        else:
            decided = found.a + found.b
            interval = f"{CONFIDENCE:.0%} interval {found.low:.1%} to {found.high:.1%}"
            lines.append(
                f"A was preferred in {found.a} of {decided} pairs: {found.share:.1%}, {interval}; {found.equal} equal."
            )
            told = {True: "By these votes people prefer {}.", False: "These votes do not tell which people prefer."}
            side = "A" if found.low > 0.5 else "B" if found.high < 0.5 else ""
            lines.append(told[bool(side)].format(side))
        if before:
            lines.append(f"The result was looked at before, after {', '.join(map(str, before))} votes: it counts less.")
        return "\n".join(lines)

    def _write(self, **changes: Any) -> None:
        state = Votes(**{name: getattr(self.state, name) for name in Votes.__dataclass_fields__} | changes)
        write_atomic(self.path, pretty_json(asdict(state)))
        self.state = state


def open_study(models: tuple[Path, Path], names: tuple[str, str], *, votes: Path, seed: int | None) -> Study:
    """Return the study of two models whose votes are, or will be, in a file.

    Args:
        models: The MODEL folders A and B.
        names: What to call them in the result.
        votes: The JSON file; one that is there goes on.
        seed: Of the samples and the sides; None: that of the file, else 0.

    Raises:
        UsageError: If the models cannot be compared, or the file is of other models or another seed.
        ArtifactError: If a model or the file is missing or damaged.
        EnvironmentFault: If another process holds the file.
    """
    from vq_prior.model.pipeline import VQPriorPipeline

    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed must be between 0 and {MAX_SEED}, got {seed}")
    if votes.is_dir():
        raise UsageError(f"--votes must be a file to write, {votes} is a folder")
    there = _read(votes) if votes.exists() else None
    a, b = (VQPriorPipeline.from_pretrained(model) for model in models)
    require_comparable(a, b)
    first, second = _contender(a, models[0], names[0]), _contender(b, models[1], names[1])
    if _bytes_of(first) == _bytes_of(second):
        raise UsageError(f"{models[0]} and {models[1]} are the same model; compare two that differ")
    if there is None:
        make_folder(true_place(votes).parent)
        there = Votes(1, first, second, 0 if seed is None else seed)
    elif (_bytes_of(there.a), _bytes_of(there.b)) != (_bytes_of(first), _bytes_of(second)):
        theirs = f"{there.a.name} against {there.b.name}"
        raise UsageError(f"{votes} holds votes on other models ({theirs}); choose another file by --votes")
    elif seed not in (None, there.seed):
        raise UsageError(f"{votes} holds votes of seed {there.seed}, got {seed}; leave it out or choose other --votes")
    claim(votes)
    return Study(a, b, votes, there)


def require_comparable(a: "VQPriorPipeline", b: "VQPriorPipeline") -> None:
    """Raise `UsageError` unless two models draw the same kind and size of data, of the same classes, from nothing."""
    forms = [(each.codec.modality.name, each.codec.spec.shape, each.codec.spec.channels) for each in (a, b)]
    if forms[0] != forms[1]:
        told = " and ".join(f"{name} of {'x'.join(map(str, shape))}x{channels}" for name, shape, channels in forms)
        raise UsageError(f"the two models draw {told}; compare models of one form")
    classes = [sorted(map(one_form, each.index.label_names)) for each in (a, b)]
    if classes[0] != classes[1]:
        told = " and ".join(", ".join(each[:5]) or "none" for each in classes)
        raise UsageError(f"the two models have other classes ({told}); compare models of the same classes")
    if a.prior.layout.given_levels or b.prior.layout.given_levels:
        raise UsageError("a model that is given levels of codes draws nothing by itself; compare others")


def _contender(pipeline: "VQPriorPipeline", model: Path, name: str) -> Contender:
    from vq_prior.core.disk.components import WEIGHTS, find_component

    sampling = pipeline.index.sampling
    prior = file_sha256(find_component(model, "prior") / WEIGHTS)
    told = f"temperature {sampling.temperature}, guidance {sampling.guidance_scale:g}"
    return Contender(name, pipeline.index.codec_id, prior, told)


def _bytes_of(contender: Contender) -> tuple[str, str, str]:
    return contender.codec_id, contender.prior_sha256, contender.sampling


def _pictures(pipeline: "VQPriorPipeline", names: tuple[str, ...], seed: int, first: int) -> "Pixels":
    """Return the pictures of samples `first` ... of a model, the classes in the order of `names`."""
    drawn = pipeline(AT_ONCE, labels=list(names) or None, seed=seed, first_index=first, output_type="pt").drawn
    return pipeline.codec.modality.show.pictures(drawn)


def _read(path: Path) -> Votes:
    state = from_json(Votes, read_json(path), str(path))
    if state.format_version != 1:
        raise ArtifactError(f"{path} has format version {state.format_version}; this version reads 1")
    if not 0 <= state.seed <= MAX_SEED:
        raise ArtifactError(f"{path}: seed must be between 0 and {MAX_SEED}, got {state.seed}")
    for number, vote in enumerate(state.votes):
        if vote.pair != number or vote.left != left_of(state.seed, number):
            raise ArtifactError(f"{path}: vote {number} is not of the pair that seed {state.seed} shows there")
    return state
