"""A second network beside the codec: trained, logged, kept in checkpoints, resumed to the bit, on any processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stage1_vqvae.adversary import Adversary
from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.settings import ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae
from vq_prior.core.disk.checkpoints import latest_checkpoint
from vq_prior.core.errors import UsageError
from vq_prior.core.spec import CodeSpec
from vq_prior.judge.fingerprint import fingerprint


class ToyDiscriminator(Adversary):
    """One number a place, from one convolution; hinge losses (Lim and Ye 2017, "Geometric GAN")."""

    name = "discriminator"
    loss_terms = {"misled": 0.1}  # noqa: RUF012
    share = 0.5

    def __init__(self, spec: CodeSpec) -> None:
        super().__init__()
        self.layer = nn.Conv2d(spec.channels, 1, 3)

    def judged(self, images: Tensor, copies: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        return {"misled": -self.layer(copies).mean()}

    def forward(self, images: Tensor, copies: Tensor) -> dict[str, Tensor]:
        return {"data": (1 - self.layer(images)).relu().mean(), "copies": (1 + self.layer(copies)).relu().mean()}


def tiny(out: Path, **changes: object) -> TrainVQVAE:
    base = TrainVQVAE(
        "digits",
        out,
        steps=9,
        batch_size=16,
        checkpoint_every=4,
        log_every=3,
        warmup_steps=2,
        num_workers=1,
        precision="fp32",
        model=ModelSettings(width=16, num_residual_blocks=1),
        quantizer=QuantizerSettings(num_codes=32, code_dim=4, decay=0.8, revive_below=0.2),
    )
    return replace(base, **changes)


IN_SEVERAL_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_adversary
from vq_prior.core.processes.runtime import leave_runtime
test_adversary.train_vqvae(
    test_adversary.tiny(Path(sys.argv[1]) / "run", reproducible=True), test_adversary.ToyDiscriminator
)
leave_runtime(0)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adversary") / "run"
    train_vqvae(tiny(out), ToyDiscriminator)
    return out


def test_it_learns_is_logged_and_stays_out_of_the_codec(run: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (run / "vqvae-training" / "metrics.jsonl").read_text().splitlines()]
    told = {"misled", "discriminator_data", "discriminator_copies", "discriminator_gradient_norm"}
    assert all(told <= line.keys() for line in lines)
    checkpoint, _ = latest_checkpoint(run / "vqvae-training" / "checkpoints")
    assert checkpoint is not None
    assert set(checkpoint.modules) == {"vqvae", "discriminator"}
    assert set(checkpoint.optimizers) == {"adamw", "discriminator-adamw"}
    assert set(checkpoint.averages) == {"vqvae"}
    train_vqvae(tiny(tmp_path / "alone"))
    alone, _ = latest_checkpoint(tmp_path / "alone" / "vqvae-training" / "checkpoints")
    assert alone is not None
    # It pulled at the decoder, and at nothing that has another name.
    assert alone.modules["vqvae"].keys() == checkpoint.modules["vqvae"].keys()
    name = "decoder.stem.weight"
    assert not torch.equal(alone.modules["vqvae"][name], checkpoint.modules["vqvae"][name])


def test_its_step_is_that_of_plain_torch() -> None:
    from stage1_vqvae.adversary import AdversaryTraining
    from vq_prior.core.processes.runtime import start_runtime
    from vq_prior.core.spec import LevelSpec

    spec = CodeSpec(1, (8, 8), (LevelSpec((4, 4), 32),))
    ours = AdversaryTraining(ToyDiscriminator, spec, start_runtime("fp32"), seed=0, learning_rate=0.1, betas=(0.5, 0.9))
    plain = ToyDiscriminator(spec)
    plain.load_state_dict(ours.network.state_dict())
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05, betas=(0.5, 0.9), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        images, copies = (torch.randn(12, 1, 8, 8, generator=generator) for _ in range(2))
        numbers, loss = ours.passes([(images[:4], copies[:4], 4 / 12), (images[4:], copies[4:], 8 / 12)], 0.2)
        ours.step(0.1)
        optimizer.zero_grad()
        terms = plain(images, copies)
        sum(terms.values()).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.2)
        optimizer.step()
        torch.testing.assert_close(loss, sum(terms.values()).detach())
        torch.testing.assert_close(numbers["discriminator_gradient_norm"], norm)
    for name, weight in plain.state_dict().items():  # another order of float32 sums
        torch.testing.assert_close(ours.network.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


def test_a_killed_run_ends_in_the_same_bits(run: Path, tmp_path: Path) -> None:
    from killing import killed_and_run_again  # here, since processes of the launcher import this file, too

    killed_and_run_again(lambda: train_vqvae(tiny(tmp_path / "run"), ToyDiscriminator), at=[2, 6])
    assert fingerprint(tmp_path / "run") == fingerprint(run)
    last = "vqvae-training/checkpoints/step-00000009"
    for file in sorted((run / last).iterdir()):
        assert (tmp_path / "run" / last / file.name).read_bytes() == file.read_bytes(), file.name
    with pytest.raises(UsageError, match="the content of adversary ToyDiscriminator -> None"):
        train_vqvae(tiny(tmp_path / "run", steps=12))


def test_a_term_without_a_weight_is_refused_at_the_start(tmp_path: Path) -> None:
    class Unweighted(ToyDiscriminator):
        loss_terms = {"misled": None}  # noqa: RUF012

    with pytest.raises(UsageError, match="the loss term 'misled' of the adversary has no weight"):
        train_vqvae(tiny(tmp_path / "run"), Unweighted)
    assert not (tmp_path / "run").exists()


def test_two_processes_end_in_the_bits_of_one(tmp_path, launch, request):
    train_vqvae(tiny(tmp_path / "one" / "run", reproducible=True), ToyDiscriminator)
    (tmp_path / "two").mkdir()
    launch(IN_SEVERAL_PROCESSES, tmp_path / "two", request.path.parent, processes=2)
    one, two = (latest_checkpoint(tmp_path / n / "run" / "vqvae-training" / "checkpoints")[0] for n in ("one", "two"))
    for kind in ("modules", "optimizers", "averages"):
        for name, tensors in getattr(one, kind).items():
            for key, tensor in tensors.items():
                assert torch.equal(tensor, getattr(two, kind)[name][key]), (kind, name, key)
