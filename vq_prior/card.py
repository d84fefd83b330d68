"""The model card: the README.md of a MODEL, for people and for the Hub."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stage2_prior.prior import CausalPrior
    from vq_prior.model_folder import ModelIndex


def model_card(index: "ModelIndex", prior: "CausalPrior") -> str:
    """Return the card's Markdown. It holds no path, host or user name."""
    spec, sampling = index.spec, index.sampling
    size = " x ".join(map(str, spec.shape))
    grids = ", ".join(f"{' x '.join(map(str, level.grid))} of {level.num_codes} codes" for level in spec.levels)
    classes = ", ".join(index.label_names) or "none (unconditional)"
    parameters = sum(parameter.numel() for parameter in prior.model.parameters())
    label = f', labels="{index.label_names[0]}"' if index.label_names else ""
    return f"""---
library_name: vq-prior
pipeline_tag: unconditional-image-generation
---

# A two-stage image generator

A VQ-VAE and an autoregressive transformer prior over its codes, trained with vq-prior.

| | |
|---|---|
| images | {size}, {spec.channels} channel{"s" if spec.channels > 1 else ""} |
| code grids | {grids} |
| tokens an image | {spec.num_tokens} |
| parameters of the prior | {parameters:,} |
| classes | {classes} |
| temperature, guidance scale | {sampling.temperature:g}, {sampling.guidance_scale:g} (chosen on held-out data) |
| codec id | `{index.codec_id}` |

```python
from vq_prior import VQPriorPipeline

pipe = VQPriorPipeline.from_pretrained("MODEL")  # this folder
images = pipe(num_images=16{label}, seed=0).images
```
"""
