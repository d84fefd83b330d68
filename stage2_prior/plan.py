"""What a training would be: its settings, sizes and estimated time."""

from math import prod

from stage2_prior.fine_tuning import architecture_of
from stage2_prior.run import Training
from stage2_prior.settings import PriorModel, filled
from vq_prior.core.config import to_json
from vq_prior.core.training.runs import flatten


def block_bytes(model: PriorModel, precision: str | None) -> int:
    """Return about how many bytes of each token one block keeps for its backward pass; see `forward`.

    Float32 are two norms, the attention's output, and queries and keys before and after their rotation. In the
    precision of the products are queries, keys and values; gate, up, open gate and their product; and copies of the
    first three where they are not float32.
    """
    width, heads, groups = filled(model.hidden_size), filled(model.num_heads), filled(model.num_key_value_heads)
    head_dim, item = width // heads, 2 if precision == "bf16" else 4
    projected = (heads + 2 * groups) * head_dim + 4 * filled(model.intermediate_size)
    copies = 3 * width if item < 4 else 0
    return 4 * (3 * width + 2 * (heads + groups) * head_dim) + item * (projected + copies)


def memory_bytes(t: Training) -> int:
    """Return about how many bytes a process holds at most, libraries left out."""
    s, m, layout = t.settings, architecture_of(t.prior), t.prior.layout
    parameters = sum(p.numel() for p in t.prior.model.parameters())
    trained = sum(p.numel() for p in t.prior.model.parameters() if p.requires_grad)
    # Weights, their average, the best of it, and packed for the passes; of the trained ones gradients and moments.
    state = 18 * parameters + (8 if s.optimizer == "muon" else 12) * trained
    if s.fsdp:
        state //= t.runtime.num_processes
    layers, block = filled(m.num_layers), block_bytes(m, s.precision)
    # Where the last blocks are a head over depth, those before them see a cell in place of its tokens.
    seen = m.depth_blocks + (layers - m.depth_blocks) / (layout.cell_tokens if m.depth_blocks else 1)
    activations = 4 * filled(m.hidden_size) * seen + block if s.gradient_checkpointing else seen * block
    # Gradients take what they belong to once more: in the blocks one at a time.
    of_a_token = activations + block + 24 * layout.vocab_size
    rows = -(-filled(s.batch_size) // t.runtime.num_processes)
    resident = sum(prod(grid.shape) * grid.itemsize for grid in t.train.grids)
    return state + round(rows * layout.num_tokens * of_a_token) + resident


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
    s, layout = t.settings, t.prior.layout
    parameters = sum(p.numel() for p in t.prior.model.parameters())
    trained = sum(p.numel() for p in t.prior.model.parameters() if p.requires_grad)
    all_codes = sum(level.num_codes for level in layout.levels)
    return [
        *([f"{layout.num_codes} of {all_codes} codes occur; the others have no token"] if layout.kept else []),
        f"{parameters} parameters, {trained} of them trained, about {memory_bytes(t) >> 20} MiB of memory a process",
        f"estimated time {seconds_per_step * filled(s.steps):.0f} s ({s.steps} x {1000 * seconds_per_step:.0f} ms)",
    ]
