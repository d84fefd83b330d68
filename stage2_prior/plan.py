"""What a training would be: its settings, sizes and estimated time."""

from math import prod

from stage2_prior.fine_tuning import architecture_of
from stage2_prior.run import Training
from stage2_prior.settings import given
from vq_prior.core.config import to_json
from vq_prior.core.runs import flatten


def plan_lines(t: Training, seconds_per_step: float) -> list[str]:
    """Return the lines of a dry run: resolved settings, layout, parameters, memory and time."""
    return [
        *(f"{name.replace('_', '-')}: {value}" for name, value in sorted(flatten(to_json(t.settings)).items())),
        t.prior.layout.describe(),
        f"{len(t.train)} training rows, {len(t.held_out)} held-out rows measured",
        *size_lines(t, seconds_per_step),
    ]


def size_lines(t: Training, seconds_per_step: float) -> list[str]:
    """Return the vocabulary if it is compacted, parameters and memory in one line, and the time of the training."""
    s, m, layout = t.settings, architecture_of(t.prior), t.prior.layout
    parameters = sum(p.numel() for p in t.prior.model.parameters())
    trained = sum(p.numel() for p in t.prior.model.parameters() if p.requires_grad)
    rows = -(-given(s.batch_size) // t.runtime.num_processes)
    width = 8 * given(m.hidden_size) + 3 * given(m.intermediate_size)
    activations = 4 * rows * layout.num_tokens * (given(m.num_layers) * width + 3 * layout.vocab_size)
    resident = sum(prod(grid.shape) * grid.itemsize for grid in t.train.grids)
    memory = 24 * parameters + activations + resident
    all_codes = sum(level.num_codes for level in layout.levels)
    return [
        *([f"{layout.num_codes} of {all_codes} codes occur; the others have no token"] if layout.kept else []),
        f"{parameters} parameters, {trained} of them trained, about {memory >> 20} MiB of memory a process",
        f"estimated time {seconds_per_step * given(s.steps):.0f} s ({s.steps} x {1000 * seconds_per_step:.0f} ms)",
    ]
