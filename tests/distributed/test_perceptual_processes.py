"""Perceptual and adversarial terms on two processes: the bits of one."""

from pathlib import Path

import pytest

from vq_prior.core.disk.checkpoints import latest_checkpoint

IN_SEVERAL_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_perceptual_processes as here
from vq_prior.core.processes.runtime import leave_runtime
here.train(Path(sys.argv[1]) / "run", sys.argv[3])
leave_runtime(0)
"""
TERMS = {
    "perceptual": {"perceptual": "own", "perceptual_weight": 1.0},
    "adversarial": {"adversarial": "relativistic", "adversarial_start": 0.3},
}
MODULES = {"perceptual": {"perceptual"}, "adversarial": {"discriminator", "judge"}}


def train(out: Path, term: str) -> None:
    """Train some steps of batches of 16, the term in the last of them."""
    from stage1_vqvae.modalities.pictures import classifier
    from stage1_vqvae.perceptual import own
    from stage1_vqvae.quantizer_settings import QuantizerSettings
    from stage1_vqvae.settings import LossSettings, ModelSettings, TrainVQVAE
    from stage1_vqvae.train import train_vqvae

    own.STEPS = classifier.STEPS = 5
    sizes = {"model": ModelSettings(width=16, num_residual_blocks=1), "quantizer": QuantizerSettings(num_codes=32)}
    loss = LossSettings(**TERMS[term])
    train_vqvae(TrainVQVAE("digits", out, steps=6, batch_size=16, reproducible=True, loss=loss, **sizes))


@pytest.mark.parametrize("term", TERMS)
def test_two_processes_end_in_the_bits_of_one(term, tmp_path, launch, request, monkeypatch):
    monkeypatch.setattr("stage1_vqvae.perceptual.own.STEPS", 5)
    monkeypatch.setattr("stage1_vqvae.modalities.pictures.classifier.STEPS", 5)
    train(tmp_path / "one" / "run", term)
    (tmp_path / "two").mkdir()
    launch(IN_SEVERAL_PROCESSES, tmp_path / "two", request.path.parent, term, processes=2)
    one, two = (latest_checkpoint(tmp_path / n / "run" / "vqvae-training" / "checkpoints")[0] for n in ("one", "two"))
    assert set(one.modules) == {"vqvae", *MODULES[term]}
    assert one.state == two.state
    for kind in ("modules", "averages"):
        for name, tensors in getattr(one, kind).items():
            others = getattr(two, kind)[name]
            assert all((tensor == others[key]).all() for key, tensor in tensors.items()), name
