"""How many places of the data one code stands for, along each axis, and in which steps a network gets there.

Imports neither torch nor transformers. The rule of steps: the factor of an axis is taken apart into its prime factors,
the smallest first, and each is one strided convolution. An axis of fewer steps takes them last, next to the code grid,
and is kept as it is before.
"""

import math

Downsampling = int | tuple[int, ...]  # of every axis, or one an axis

MOST_CELLS = 1024  # of the default grid of pictures whose sides differ much
MAX_FACTOR, MAX_STEP = 4096, 13
ALLOWED = f"a whole number from 2 to {MAX_FACTOR} without a prime factor above {MAX_STEP}, or one an axis (1: keep it)"


def factors_of(downsampling: Downsampling, rank: int) -> tuple[int, ...]:
    """Return the factor of each of `rank` axes."""
    return (downsampling,) * rank if isinstance(downsampling, int) else downsampling


def grid_of(shape: tuple[int, ...], downsampling: Downsampling) -> tuple[int, ...]:
    """Return the code grid of data of this shape: each side divided by its factor, rounded up."""
    factors = factors_of(downsampling, len(shape))
    return tuple(-(-side // factor) for side, factor in zip(shape, factors, strict=True))


def steps_of(factor: int) -> tuple[int, ...]:
    """Return the prime factors of a number, the smallest first.

    >>> steps_of(4), steps_of(320), steps_of(1)
    ((2, 2), (2, 2, 2, 2, 2, 2, 5), ())
    """
    steps, prime = [], 2
    while factor > 1:
        while factor % prime == 0:
            steps.append(prime)
            factor //= prime
        prime += 1
    return tuple(steps)


def strides_of(factors: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the strides along every axis of each convolution from the data to the code grid.

    >>> strides_of((4, 4))
    ((2, 2), (2, 2))
    >>> strides_of((4, 8, 6))
    ((1, 2, 1), (2, 2, 2), (2, 2, 3))
    """
    steps = [steps_of(factor) for factor in factors]
    longest = max(map(len, steps))
    return tuple(zip(*((1,) * (longest - len(own)) + own for own in steps), strict=True))


def can_be_taken(downsampling: Downsampling) -> bool:
    """Return whether a network can be built for these factors; `ALLOWED` says in words which."""
    several = not isinstance(downsampling, int)
    factors = factors_of(downsampling, 1)
    if not factors or max(factors) < 2:
        return False
    inside = all((1 if several else 2) <= factor <= MAX_FACTOR for factor in factors)
    return inside and all(max(steps_of(factor), default=1) <= MAX_STEP for factor in factors)


def as_one(downsampling: Downsampling, rank: int) -> Downsampling:
    """Return the factors of all `rank` axes as one number if they are alike."""
    if isinstance(downsampling, int) or len(downsampling) != rank or len(set(downsampling)) != 1:
        return downsampling
    return downsampling[0]


def default_downsampling(size: tuple[int, ...]) -> int:
    """Return pixels of one code: the least by which no side has more than 8 codes (16 above 48 px).

    Of a picture much wider than high, or higher than wide, no more than a square of its shorter side would have, as
    long as the grid has no more than 1024 codes: a strip of 32x256 has 8x64, as 32x32 has 8x8.
    """
    factor = _of_longest(max(size))
    if len(size) == 2:
        finer = min(factor, _of_longest(min(size)))
        while finer < factor and math.prod(grid_of(size, finer)) > MOST_CELLS:
            finer *= 2
        factor = finer
    return factor


def _of_longest(side: int) -> int:
    most_cells, factor = 8 if side <= 48 else 16, 2
    while -(-side // factor) > most_cells:
        factor *= 2
    return factor
