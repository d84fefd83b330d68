"""What is told of a training before it starts, against what its passes keep."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from stage2_prior.forward import SequenceModel
from stage2_prior.plan import block_bytes
from stage2_prior.prior import build_prior
from stage2_prior.settings import CodeFacts, PriorModel, resolve_model
from vq_prior.core.spec import CodeSpec, LevelSpec

SPEC = CodeSpec(3, (16, 16), (LevelSpec((4, 4), 100),))


def saved_bytes(model: PriorModel, precision: str, rows: int) -> int:
    """Return the bytes that autograd keeps of one forward pass, the parameters left out."""
    prior = build_prior(model, SPEC, codec_id="c" * 64, num_classes=3)
    passes = SequenceModel(prior.model, torch.bfloat16 if precision == "bf16" else torch.float32)
    parameters = {p.untyped_storage().data_ptr() for p in passes.parameters()}
    sizes: dict[int, int] = {}
    alive = []  # an address stands for one storage only while that storage is there

    def note(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = 0 if storage.data_ptr() in parameters else storage.nbytes()
        return tensor

    tokens = torch.randint(0, 100, (rows, 16))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        passes(tokens)
    return sum(sizes.values())


@pytest.mark.parametrize("size", ["tiny", "large"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_that_is_told_of_a_block_is_what_it_keeps(size: Any, precision: Any) -> None:
    narrow = PriorModel(num_layers=1, hidden_size=192 if size == "large" else None)
    one = resolve_model(narrow, CodeFacts(16, 100, 50_000), "cpu", size)
    # More rows and more layers: what is left belongs neither to the weights nor to what stands around the blocks.
    of_rows = [saved_bytes(m, precision, 34) - saved_bytes(m, precision, 2) for m in (one, replace(one, num_layers=2))]
    measured = (of_rows[1] - of_rows[0]) / (32 * 16)
    # The kernels' own notes, such as the attention's normalisers, are not told.
    assert block_bytes(one, precision) == pytest.approx(measured, rel=0.1)
