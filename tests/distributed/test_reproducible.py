"""`--reproducible`: the same bits of weights, averages, optimisers and losses on 1, 2, 4 and 8 processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.settings import ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae
from stage2_prior.settings import PriorModel, TrainPrior
from stage2_prior.train import train_prior
from vq_prior.core.errors import UsageError
from vq_prior.core.processes.ordered_sums import TreeSum
from vq_prior.core.processes.runtime import Runtime
from vq_prior.judge.fingerprint import fingerprint

IN_SEVERAL_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_reproducible
from vq_prior.core.processes.runtime import leave_runtime
test_reproducible.train_all(Path(sys.argv[1]), Path(sys.argv[3]), int(sys.argv[4]))
leave_runtime(0)
"""

QUANTIZERS = {
    "ema": QuantizerSettings(num_codes=32, code_dim=4, decay=0.8, revive_below=0.2),
    "nearest-entropy": QuantizerSettings(name="nearest", num_codes=32, code_dim=4, entropy_temperature=0.1),
    "lfq": QuantizerSettings(name="lfq", num_codes=64),
    "gumbel": QuantizerSettings(name="gumbel", num_codes=32, code_dim=4),
    "residual": QuantizerSettings(num_codes=32, code_dim=4, decay=0.8, depth=2),
}
GRIDS = {"levels": 2, "model": ModelSettings(width=16, num_residual_blocks=1, downsampling=4)}


def train_all(out: Path, codes: Path, steps: int) -> None:
    """Train a codec with each quantiser, and a prior with each optimiser; the batches are no multiple of eight."""
    codec = TrainVQVAE(
        "digits",
        out,
        steps=steps,
        batch_size=21,
        log_every=1,
        warmup_steps=2,
        num_workers=1,
        augment=True,
        reproducible=True,
        model=ModelSettings(width=16, num_residual_blocks=1),
    )
    for name, quantizer in QUANTIZERS.items():
        train_vqvae(replace(codec, out=out / name, quantizer=quantizer))
    train_vqvae(replace(codec, out=out / "bf16", precision="bf16"))
    train_vqvae(replace(codec, out=out / "grids", quantizer=QUANTIZERS["residual"], **GRIDS))
    prior = TrainPrior(
        codes,
        out,
        steps=steps,
        batch_size=19,
        log_every=1,
        eval_every=5,
        warmup_steps=2,
        reproducible=True,
        model=PriorModel(num_layers=2, hidden_size=16, num_heads=2),
    )
    for name in ("adamw", "muon"):
        train_prior(replace(prior, out=out / name, optimizer=name))  # type: ignore[arg-type]


@pytest.mark.fault("F25", "R4")
def test_training_gives_the_same_bits_on_any_number_of_processes(tmp_path, launch, tiny_run, request, faults):
    steps = faults.number(6, 100)
    train_all(tmp_path / "1", tiny_run / "codes", steps)
    for processes in (2, 4, 8) if faults.full else [faults.rng.choice((2, 4))]:
        folder = tmp_path / str(processes)
        folder.mkdir()
        codes = tiny_run / "codes"
        launch(IN_SEVERAL_PROCESSES, folder, request.path.parent, codes, steps, processes=processes, timeout=1000)
        for run in (*QUANTIZERS, "bf16", "grids", "adamw", "muon"):
            assert fingerprint(folder / run) == fingerprint(tmp_path / "1" / run), (processes, run)
    log = (tmp_path / "1" / "ema" / "vqvae-training" / "metrics.jsonl").read_text().splitlines()
    assert len(log) == steps
    assert len({json.loads(line)["reconstruction"] for line in log}) > steps // 2  # it did train
    faults.planted(steps)


def test_a_sum_of_branches_is_the_tree_whoever_adds_them():
    parts = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0)) * 10 ** torch.arange(-4.0, 4.0)[:, None]

    def summed(tensors):
        tree = TreeSum()
        for tensor in tensors:
            tree.add(tensor)
        return tree.total()

    whole = summed(parts)
    for processes in (2, 4, 8):
        assert torch.equal(summed([summed(branch) for branch in parts.chunk(processes)]), whole)
    assert torch.equal(summed(parts[:3]), parts[0] + parts[1] + parts[2])
    assert not torch.equal(parts.sum(0), whole)  # an order was chosen, and it matters
    assert TreeSum().total() is None


class _Place:
    num_processes, process_index, is_main_process = 1, 0, True


def test_pieces_cover_every_row_in_order_and_are_the_shards_of_the_whole_batch():
    for total in (8, 21, 64):
        cuts = []
        for processes in (1, 2, 4, 8):
            pieces = []
            for index in range(processes):
                place = _Place()
                place.num_processes, place.process_index = processes, index
                pieces += Runtime(place, "fp32", reproducible=True).pieces(total)
            assert [row for piece in pieces for row in range(piece.start, piece.stop)] == list(range(total))
            cuts.append(pieces)
        assert all(pieces == cuts[0] for pieces in cuts)
    assert Runtime(_Place(), "fp32").pieces(10, 3) == [slice(0, 3), slice(3, 6), slice(6, 10)]


def test_what_cannot_be_reproducible_is_refused(tmp_path, run_cli, launched):
    settings = TrainVQVAE("digits", tmp_path / "run", steps=2, reproducible=True)
    with pytest.raises(UsageError, match="at least 8, one row for each logical shard, got 7"):
        train_vqvae(replace(settings, batch_size=7))
    with pytest.raises(UsageError, match="leave out --gradient-accumulation-steps 2"):
        train_vqvae(replace(settings, gradient_accumulation_steps=2))
    words = ["train-vqvae", "--data", "digits", "--out", tmp_path / "run", "--reproducible", "--num-processes", 3]
    done = run_cli(*words, env=launched)
    assert done.returncode == 2
    assert "runs on 1, 2, 4 or 8 processes, got 3" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
