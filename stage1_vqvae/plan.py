"""What a training of the codec will be, in words, before it begins."""

from stage1_vqvae.model import VQVAE
from stage1_vqvae.settings import TrainVQVAE


def describe(settings: TrainVQVAE, model: VQVAE) -> str:
    """Return one line on what will be trained."""
    level = model.spec.levels[0]
    grid = "x".join(map(str, level.grid))
    size = "x".join(map(str, model.spec.shape))
    return (
        f"codec: images {size}x{model.spec.channels} -> {grid} grid of {level.num_codes} codes "
        f"({settings.quantizer.name}, {level.num_tokens} tokens), {model.num_parameters():,} parameters; "
        f"{settings.steps} steps of {settings.batch_size} images"
    )
