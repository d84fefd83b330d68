"""A training that was interrupted anywhere, any number of times, ends in the bits of one that was not."""

import shutil
from pathlib import Path

import pytest
from trainings import train, train_in_goes

from vq_prior.judge.fingerprint import fingerprint

IN_TWO_PROCESSES = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_resume
from vq_prior.core.processes.runtime import leave_runtime
test_resume.cut_everywhere(sys.argv[4], Path(sys.argv[1]), Path(sys.argv[3]), *json.loads(sys.argv[5]))
leave_runtime(0)
"""


def cut_everywhere(stage: str, folder: Path, codes: Path, cuts: list[int], chain: list[int]) -> None:
    """Train whole, cut after each of some steps, and in a chain of goes; the fingerprints must not differ."""
    from vq_prior.core.processes.runtime import start_runtime

    def compare(name: str) -> None:
        runtime.barrier()
        if runtime.is_main:
            assert fingerprint(folder / name) == whole, (stage, name)
            shutil.rmtree(folder / name)
        runtime.barrier()

    runtime = start_runtime()
    train(stage, folder / "whole", codes)
    whole = fingerprint(folder / "whole")
    for cut in cuts:
        train_in_goes(stage, folder / f"cut {cut}", codes, [cut])
        compare(f"cut {cut}")
    train_in_goes(stage, folder / "chain", codes, chain)
    compare("chain")


@pytest.mark.fault("F1", "R1")
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.one_of("cut, two"))])
@pytest.mark.parametrize("stage", ["codec", "prior"])
def test_a_training_cut_after_any_step_ends_in_the_same_bits(
    stage, processes, tmp_path, tiny_run, launch, request, faults
):
    cuts = sorted(faults.rng.sample(range(1, 60), faults.number(2, 59)))
    chain = [faults.rng.randint(1, 5) for _ in range(faults.number(3, 10))]
    if processes == 1:
        cut_everywhere(stage, tmp_path, tiny_run / "codes", cuts, chain)
    else:
        arguments = [request.path.parent, tiny_run / "codes", stage, [cuts, chain]]
        launch(IN_TWO_PROCESSES, tmp_path, *arguments, timeout=3000)
    faults.planted(len(cuts) + len(chain))


@pytest.mark.fault("F16")
def test_what_a_step_sees_is_the_same_rows_however_many_processes_share_it(faults):
    from vq_prior.core.processes.runtime import Runtime
    from vq_prior.core.training.randomness import batch_rows

    class Place:
        num_processes, process_index = 1, 0

    for rows in range(1, 41):
        for batch in (1, 3, 8):
            seen = [batch_rows(rows, batch, 7, step) for step in range(-(-2 * rows // batch))]
            chain = [int(row) for part in seen for row in part]
            for epoch in range(len(chain) // rows):  # every epoch is every row once, across the borders of batches
                assert sorted(chain[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
            for processes in range(1, 5):
                for step, whole in enumerate(seen):
                    parts = []
                    for index in range(processes):
                        place = Place()
                        place.num_processes, place.process_index = processes, index
                        parts += list(batch_rows(rows, batch, 7, step)[Runtime(place, "fp32").share(batch)])
                    assert parts == list(whole)
    faults.planted(40 * 4)
