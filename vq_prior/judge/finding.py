"""What an examination gives: numbers, and faults in words."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """A fault: what it is called, what was measured, what to do.

    Attributes:
        fault: Its name.
        evidence: The numbers.
        remedy: What to do.
        fatal: Whether nothing can come of it: a collapsed codebook, or a prior no better than unigram.
    """

    fault: str
    evidence: str
    remedy: str
    fatal: bool = False


@dataclass
class Examined:
    """What was measured of one part, and what is wrong with it."""

    measured: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
