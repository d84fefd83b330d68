"""What a training of the codec will be, in words, before it begins."""

from stage1_vqvae.model import VQVAE
from stage1_vqvae.settings import TrainVQVAE


def describe(settings: TrainVQVAE, model: VQVAE) -> str:
    """Return one line on what will be trained."""
    spec = model.spec
    grids = " + ".join(f"{'x'.join(map(str, level.grid))} grid of {level.num_codes} codes" for level in spec.levels)
    size = "x".join(map(str, spec.shape))
    return (
        f"codec: images {size}x{spec.channels} -> {grids} "
        f"({settings.quantizer.name}, {spec.num_tokens} tokens), {model.num_parameters():,} parameters; "
        f"{settings.steps} steps of {settings.batch_size} images"
    )
