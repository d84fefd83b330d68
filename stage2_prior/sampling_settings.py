"""The one list of sampling settings, for commands and calls alike. Imports neither torch nor transformers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

TEMPERATURE, GUIDANCE_SCALE = 1.0, 1.0  # what was learnt, of the class alone
Temperature = float | tuple[float, ...]  # of all levels, or one a level


def _temperature_of(words: list[str]) -> Temperature | None:
    """Return the temperature that a word of the command line says; raises `ValueError` if it says none.

    >>> _temperature_of(["0.9"]), _temperature_of(["1,0.9"]), _temperature_of(["None"])
    (0.9, (1.0, 0.9), None)
    """
    (word,) = words
    if word == "None":
        return None
    values = tuple(float(part) for part in word.split(","))
    return values[0] if len(values) == 1 else values


TemperatureWord = PrimitiveConstructorSpec(
    nargs=1,
    metavar="FLOAT[,FLOAT...]",
    instance_from_str=_temperature_of,
    is_instance=lambda value: value is None or isinstance(value, (int, float, tuple)),
    str_from_instance=lambda value: ["None" if value is None else temperature_text(value).replace(" ", "")],
)


def temperature_text(temperature: Temperature) -> str:
    """Return a temperature as people read it.

    >>> temperature_text(0.9), temperature_text((1.0, 0.85))
    ('0.9', '1, 0.85')
    """
    return ", ".join(f"{each:g}" for each in (temperature if isinstance(temperature, Sequence) else (temperature,)))


@dataclass(kw_only=True)
class Sampling:
    """How images are drawn from a prior."""

    temperature: Annotated[Temperature | None, TemperatureWord] = None
    """Divides the logits; smaller is more conservative. For a codec of several levels also one a level, coarse to fine:
    1,0.9. Left out: what was measured when the prior was trained."""
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 is off. Left out: the value measured when the prior was trained."""
    guidance_power: float | None = None
    """Let guidance rise along the tokens of an image, from 1 to guidance-scale: the power of a power-cosine schedule.
    Left out: it is constant."""
    top_k: int | None = None
    """Keep the k likeliest codes of each step."""
    top_p: float | None = None
    """Then keep the smallest set of codes whose probability reaches p."""
    min_p: float | None = None
    """Then drop codes less likely than this share of the likeliest."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the prior's matrix products; bf16 is faster on machines that compute in it, and gives other images."""

    @classmethod
    def of(cls, settings: "Sampling") -> "Sampling":
        """Return these settings alone of a command's, which inherit them."""
        return Sampling(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Sampling)})

    def filled(self, temperature: Temperature = TEMPERATURE, guidance_scale: float = GUIDANCE_SCALE) -> "Sampling":
        """Return these settings with a temperature and a guidance scale where they were left out."""
        return dataclasses.replace(
            self,
            temperature=temperature if self.temperature is None else self.temperature,
            guidance_scale=guidance_scale if self.guidance_scale is None else self.guidance_scale,
        )

    def words(self) -> dict[str, Any]:
        """Return the settings by name, as calls take them and `samples.json` holds them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Sampling)}

    @property
    def filters(self) -> dict[str, Any]:
        """What `filtered_probabilities` takes of them beside the temperature."""
        return {name: getattr(self, name) for name in ("top_k", "top_p", "min_p")}

    def temperatures(self, num_levels: int) -> tuple[float, ...]:
        """Return the temperature of each level; 1 where it was left out."""
        temperature = TEMPERATURE if self.temperature is None else self.temperature
        return tuple(temperature) if isinstance(temperature, Sequence) else (temperature,) * num_levels

    @property
    def guidance(self) -> dict[str, Any]:
        """What `guidance_at` takes of them."""
        return {name: getattr(self, name) for name in ("guidance_scale", "guidance_power")}
