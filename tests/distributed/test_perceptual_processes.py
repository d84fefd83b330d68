"""A perceptual term on two processes: the bits of one."""

from pathlib import Path

from vq_prior.core.disk.checkpoints import latest_checkpoint

IN_SEVERAL_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_perceptual_processes as here
from vq_prior.core.processes.runtime import leave_runtime
here.train(Path(sys.argv[1]) / "run")
leave_runtime(0)
"""


def train(out: Path) -> None:
    """Train four steps of batches of 16 with a fitted term from the third step on."""
    from stage1_vqvae.perceptual import own
    from stage1_vqvae.quantizer_settings import QuantizerSettings
    from stage1_vqvae.settings import LossSettings, ModelSettings, TrainVQVAE
    from stage1_vqvae.train import train_vqvae

    own.STEPS = 5
    loss = LossSettings(perceptual="own", perceptual_weight=1.0)
    sizes = {"model": ModelSettings(width=16, num_residual_blocks=1), "quantizer": QuantizerSettings(num_codes=32)}
    train_vqvae(TrainVQVAE("digits", out, steps=4, batch_size=16, reproducible=True, loss=loss, **sizes))


def test_two_processes_end_in_the_bits_of_one(tmp_path, launch, request, monkeypatch):
    monkeypatch.setattr("stage1_vqvae.perceptual.own.STEPS", 5)
    train(tmp_path / "one" / "run")
    (tmp_path / "two").mkdir()
    launch(IN_SEVERAL_PROCESSES, tmp_path / "two", request.path.parent, processes=2)
    one, two = (latest_checkpoint(tmp_path / n / "run" / "vqvae-training" / "checkpoints")[0] for n in ("one", "two"))
    assert set(one.modules) == {"vqvae", "perceptual"}
    for name, tensors in one.modules.items():
        assert all((tensor == two.modules[name][key]).all() for key, tensor in tensors.items()), name
