"""The one list of sampling settings, for commands and calls alike. Imports neither torch nor transformers."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

TEMPERATURE, GUIDANCE_SCALE = 1.0, 1.0  # what was learnt, of the class alone


@dataclass(kw_only=True)
class Sampling:
    """How images are drawn from a prior."""

    temperature: float | None = None
    """Divides the logits; smaller is more conservative. Left out: the value measured when the prior was trained."""
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

    def filled(self, temperature: float = TEMPERATURE, guidance_scale: float = GUIDANCE_SCALE) -> "Sampling":
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
        """What `filtered_probabilities` takes of them."""
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p")}

    @property
    def guidance(self) -> dict[str, Any]:
        """What `guidance_at` takes of them."""
        return {name: getattr(self, name) for name in ("guidance_scale", "guidance_power")}
