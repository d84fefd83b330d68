"""The same fixed vectors on several processes, in several pieces, or at once: the same codebook."""

import numpy as np
import pytest
import torch

from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.quantizers import QUANTIZERS
from vq_prior.core.disk.tensors import read_tensors
from vq_prior.core.training.randomness import keyed_generator

STEPS, ROWS, GRID = 20, 24, 4
# Half of the codes start where the first is, are never the lowest of equals, and die: revival must agree too.
SETTINGS = {
    "ema": QuantizerSettings(name="ema", num_codes=32, code_dim=4, decay=0.8, revive_below=0.2),
    "ema, cosine": QuantizerSettings(
        name="ema", num_codes=32, code_dim=4, decay=0.8, revive_below=0.2, distance="cosine"
    ),
    "nearest": QuantizerSettings(name="nearest", num_codes=32, code_dim=4, decay=0.8, revive_below=0.2),
    "residual": QuantizerSettings(name="ema", num_codes=32, code_dim=4, decay=0.8, revive_below=0.2, depth=3),
}


def vectors_at(step: int) -> torch.Tensor:
    """The latents of the global batch of one step, [ROWS, GRID, GRID, 4]."""
    draws = keyed_generator(7, step, "vectors").standard_normal((ROWS, GRID, GRID, 4), dtype=np.float32)
    return torch.from_numpy(draws)


def moved(settings: QuantizerSettings, mine: slice, pieces: int) -> tuple[dict[str, torch.Tensor], float]:
    """The quantiser's state after all steps on this process's rows, worked through in pieces; and how many revived."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS[settings.name].of(settings).train()
    with torch.no_grad():
        for name, tensor in quantizer.state_dict().items():
            if name.endswith(("codebook", "ema_sums")):
                tensor[16:] = tensor[0]
    num_revived = 0.0
    for step in range(STEPS):
        for piece in vectors_at(step)[mine].chunk(pieces):
            quantizer(piece)
        num_revived += quantizer.update(keyed_generator(3, step, "quantizer"))["num_revived"]
    return {name: tensor.detach() for name, tensor in quantizer.state_dict().items()}, num_revived


IN_TWO_PROCESSES = """
import sys
sys.path.insert(0, sys.argv[2])
import test_codebooks
from pathlib import Path
from vq_prior.core.processes.runtime import leave_runtime, start_runtime
from vq_prior.core.disk.tensors import write_tensors
runtime = start_runtime()
mine = runtime.share(test_codebooks.ROWS)
for name, settings in test_codebooks.SETTINGS.items():
    for pieces in (1, 3):
        state, _ = test_codebooks.moved(settings, mine, pieces)
        write_tensors(Path(sys.argv[1]) / f"{name}-{pieces}-{runtime.process_index}.safetensors", state)
runtime.barrier()
leave_runtime(0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, launch, request):
    """What each of two processes ended with."""
    folder = tmp_path_factory.mktemp("two")
    launch(IN_TWO_PROCESSES, folder, request.path.parent)
    return folder


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.fault("F24", "F25")
def test_processes_and_pieces_give_the_codebook_of_one_batch(folder, name):
    whole, num_revived = moved(SETTINGS[name], slice(0, ROWS), 1)
    assert num_revived >= 10
    others = [moved(SETTINGS[name], slice(0, ROWS), 4)[0]]
    others += [read_tensors(folder / f"{name}-{n}-{rank}.safetensors") for n in (1, 3) for rank in (0, 1)]
    for other in others:
        for each in (key for key in whole if key.endswith("codebook")):
            assert (other[each] - whole[each]).abs().max() <= 1e-6, each


ONE_ULP_APART = """
import sys
from pathlib import Path
import torch
from vq_prior.core.errors import NumericError
from vq_prior.core.processes.collectives import require_same_everywhere
from vq_prior.core.processes.runtime import leave_runtime, start_runtime
runtime = start_runtime()
codebook = torch.linspace(0, 1, 64).reshape(16, 4)
require_same_everywhere({"codebook": codebook}, "the codebook")
if runtime.process_index == 1:
    codebook[7, 2] = torch.nextafter(codebook[7, 2], torch.tensor(2.0))
try:
    require_same_everywhere({"codebook": codebook}, "the codebook")
except NumericError as error:
    (Path(sys.argv[1]) / f"told-{runtime.process_index}").write_text(str(error))
runtime.barrier()
leave_runtime(0)
"""


@pytest.mark.fault("F24", "R14")
def test_codebooks_one_ulp_apart_are_found_on_every_process(tmp_path, launch):
    launch(ONE_ULP_APART, tmp_path)
    for process in (0, 1):
        assert (
            (tmp_path / f"told-{process}").read_text().startswith("the codebook of process 1 is not that of process 0")
        )
