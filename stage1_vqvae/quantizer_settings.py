"""Settings of the quantisers, and which of them suit which. Imports neither torch nor transformers.

Letters: D code dimension, K number of codes.
"""

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Annotated, Literal

from vq_prior.core.errors import UsageError
from vq_prior.core.settings import Settings, Within, check_ranges


@dataclass
class QuantizerSettings(Settings):
    """The quantiser: how a latent vector becomes a code."""

    name: str = "ema"
    """Which quantiser: ema (a codebook moved by averages), nearest (one moved by gradients), simvq (a frozen one behind
    a linear map), fsq (axes rounded to levels), lfq (signs) or gumbel (a stochastic choice)."""
    num_codes: Annotated[int | None, Within(2, 2**20)] = None
    """Size of the codebook; left out: 512, or 1024 above 48 px, and less for little data. fsq needs a product of
    numbers up to 8, lfq a power of two."""
    code_dim: Annotated[int | None, Within(1, 4096)] = None
    """Length of a code's vector; left out: 16. In fsq and lfq it follows from the number of codes."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """How latents are compared with codes: as they are, or both brought to length 1. ema, nearest, simvq."""
    gradient: Literal["straight-through", "rotation"] = "straight-through"
    """How the gradient passes the choice of a code: unchanged, or turned as the latent is turned into its code (Fifty
    et al. 2024). ema, nearest, simvq."""
    entropy_temperature: Annotated[float | None, Within(0, above=True)] = None
    """Temperature of the entropy term, which asks for sure choices and for all codes to be used; its weight is
    --loss.entropy-weight. Left out: no such term, and 1 in lfq, which lives by it. ema, nearest, simvq, lfq."""
    decay: Annotated[float, Within(0, 1, below=True)] = 0.99
    """Share of the running averages of code use (and, in ema, of the codes' vectors) that one step keeps. ema,
    nearest."""
    revive_below: Annotated[float | None, Within(0, 1)] = 0.05
    """A code used less often than this share of the mean use is dead and moves onto a latent vector of the batch;
    None leaves dead codes alone. ema, nearest."""
    start: Literal["kmeans", "data"] | None = "kmeans"
    """Where the codes begin: at the k-means centres of latent vectors, on latent vectors drawn at random, or, with
    None, anywhere. ema, nearest, simvq, gumbel."""
    depth: Annotated[int, Within(1, 16)] = 1
    """Quantisers one after another on one grid, each on what those before it leave over (residual quantisation): as
    many levels of codes. ema, nearest, simvq, fsq, gumbel."""
    level_codes: Annotated[tuple[int, ...] | None, Within(2, 2**20)] = None
    """With several levels: size of the codebook of each, coarse to fine, in place of one --quantizer.num-codes for all.
    ema, nearest, simvq, gumbel."""
    level_dropout: Annotated[float | None, Within(0, 1, below=True)] = None
    """With several levels: share of the training images that are made of their first levels alone, of how many is
    drawn; so these can be decoded without the others. Left out: 0.05 at depth 2, 0.2 if deeper, else 0. ema,
    nearest, simvq, fsq, gumbel."""
    temperatures: Annotated[tuple[float, float], Within(1e-3, 100)] = (1.0, 0.0625)
    """Temperature of the soft choice at the first step and at the last. gumbel."""

    def of_grid(self, number: int) -> "QuantizerSettings":
        """Return the settings of the quantiser of one grid, as many of the levels' sizes as it is deep."""
        if self.level_codes is None:
            return self
        own = self.level_codes[number * self.depth : (number + 1) * self.depth]
        return replace(self, num_codes=own[0], level_codes=own)

    def of_level(self, number: int) -> "QuantizerSettings":
        """Return the settings of one level of a grid, those of a quantiser of depth 1."""
        size = self.num_codes if self.level_codes is None else self.level_codes[number]
        return replace(self, depth=1, num_codes=size, level_codes=None)


DEEP = ("depth", "level_dropout", "level_codes")
# What a quantiser takes beside name, number of codes and code dimension.
SUITS: dict[str, frozenset[str]] = {
    "ema": frozenset({"distance", "gradient", "entropy_temperature", "decay", "revive_below", "start", *DEEP}),
    "nearest": frozenset({"distance", "gradient", "entropy_temperature", "decay", "revive_below", "start", *DEEP}),
    "simvq": frozenset({"distance", "gradient", "entropy_temperature", "start", *DEEP}),
    "fsq": frozenset({"depth", "level_dropout"}),
    "lfq": frozenset({"entropy_temperature"}),
    "gumbel": frozenset({"decay", "revive_below", "start", "temperatures", *DEEP}),
}
MOST_LEVELS = 8


@lru_cache
def fsq_levels(num_codes: int) -> tuple[int, ...]:
    """Return the levels of each axis, largest first, whose product is `num_codes`: few axes of 2 to 8, as even as can.

    Raises:
        UsageError: If there are none.

    >>> fsq_levels(512), fsq_levels(1000), fsq_levels(16384)
    ((8, 8, 8), (8, 5, 5, 5), (8, 8, 8, 8, 4))
    """
    products = _products(num_codes, MOST_LEVELS)
    if not products:
        raise UsageError(
            f"--quantizer.num-codes must be a product of numbers from 2 to {MOST_LEVELS} with fsq, "
            f"such as 512 or 1000, got {num_codes}"
        )
    return min(products, key=lambda levels: (len(levels), -min(levels)))


def _products(number: int, most: int) -> list[tuple[int, ...]]:
    """Return the ways to write `number` as a product of factors from 2 to `most` in falling order."""
    if number == 1:
        return [()]
    return [
        (factor, *rest)
        for factor in range(min(most, number), 1, -1)
        if number % factor == 0
        for rest in _products(number // factor, factor)
    ]


def fixed_code_dim(name: str, num_codes: int) -> int | None:
    """Return D where the number of codes decides it (fsq, lfq), else None; raises `UsageError` if K does not suit."""
    if name == "fsq":
        return len(fsq_levels(num_codes))
    if name == "lfq":
        if num_codes & (num_codes - 1):
            raise UsageError(f"--quantizer.num-codes must be a power of two with lfq, got {num_codes}")
        return num_codes.bit_length() - 1
    return None


def check_quantizer_settings(quantizer: QuantizerSettings, *, typed: bool = True) -> None:
    """Check every value, alone and together, that can be checked without data.

    Args:
        quantizer: Its settings.
        typed: Whether a person typed them, who is told what does not suit the quantiser. What a file holds for it was
            a default once.

    Raises:
        UsageError: Naming the first flag that is out of range or does not suit the quantiser.
    """
    check_ranges(quantizer, "--quantizer.")
    if quantizer.name not in SUITS:
        return  # the registry names what exists, and what is no quantiser of ours says itself what it reads
    if typed:
        refuse_unused(quantizer, SUITS[quantizer.name])
    sizes = quantizer.level_codes
    if sizes is not None and (not sizes or len(sizes) % quantizer.depth or quantizer.num_codes not in (None, sizes[0])):
        raise UsageError(
            "--quantizer.level-codes must be a number of codes for each level, and then --quantizer.num-codes is left "
            f"out, got {' '.join(map(str, sizes)) or 'nothing'}"
        )
    if quantizer.depth > 1 and quantizer.distance == "cosine":  # length 1 says nothing of what is left over
        raise UsageError("--quantizer.distance cosine does not go with --quantizer.depth; leave one of them out")
    if quantizer.num_codes is not None:
        fixed = fixed_code_dim(quantizer.name, quantizer.num_codes)
        if fixed is not None and quantizer.code_dim not in (None, fixed):
            raise UsageError(
                f"--quantizer.code-dim must be {fixed} with {quantizer.name} and {quantizer.num_codes} codes, "
                f"got {quantizer.code_dim}; leave it out"
            )


def refuse_unused(quantizer: QuantizerSettings, used: frozenset[str]) -> None:
    """Raise `UsageError` that names a setting that was given though this quantiser does not read it.

    Args:
        quantizer: The settings.
        used: Those that it reads beside name, number of codes and code dimension.
    """
    for field in fields(quantizer):
        value = getattr(quantizer, field.name)
        if field.name not in {"name", "num_codes", "code_dim", *used} and value != field.default:
            raise UsageError(f"{_flag(field.name)} does not apply to {quantizer.name}, got {value}; leave it out")


def _flag(name: str) -> str:
    return f"--quantizer.{name.replace('_', '-')}"


def default_num_codes(size: tuple[int, ...], num_vectors: int) -> int:
    """Return the largest power of two, within 32 and 512 (1024 > 48 px), that leaves each code enough vectors.

    Enough are 48 training vectors, and 128 up to 16 px, where few codes tell all and leave the prior less to learn.
    """
    most, enough = 512 if max(size) <= 48 else 1024, 128 if max(size) <= 16 else 48
    return max(32, min(most, 2 ** int(math.log2(max(1, num_vectors // enough)))))
