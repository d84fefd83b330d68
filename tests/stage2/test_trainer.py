"""Our loop against transformers' `Trainer` on the same weights, rows, order and settings."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stage2_prior import train
from stage2_prior.prior import shifted
from stage2_prior.run import prepare
from stage2_prior.settings import CodeFacts, PriorModel, TrainPrior, resolve
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.processes.runtime import start_runtime
from vq_prior.core.training.randomness import batch_rows

STEPS, BATCH = 30, 16


def test_our_losses_and_weights_are_those_of_the_trainer(code_store: Path, tmp_path: Path) -> None:
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    settings = TrainPrior(
        code_store,
        tmp_path / "run",
        steps=STEPS,
        batch_size=BATCH,
        learning_rate=3e-3,
        warmup_steps=0,
        decay_fraction=1.0,
        label_dropout=0.0,
        token_dropout=0.0,
        precision="fp32",
        max_grad_norm=0.5,
        model=PriorModel(num_layers=2, hidden_size=32, num_heads=2),
    )
    store = CodeStore.open(code_store, "train")
    settings = resolve(settings, CodeFacts(6, 12, len(store)), "cpu")
    ours = prepare(settings, start_runtime("fp32"), store, CodeStore.open(code_store, "validation"), None)
    model, layout = copy.deepcopy(ours.prior.model), ours.prior.layout

    examples = []
    for step in range(STEPS):
        tokens, labels = ours.train.batch(batch_rows(len(ours.train), BATCH, settings.seed, step))
        examples += [
            {"input_ids": i, "labels": t} for i, t in zip(shifted(layout, tokens, labels), tokens, strict=True)
        ]

    theirs: list[float] = []

    class Stock(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
            """Return the cross-entropy under the ids that are legal, all codes here."""
            logits = model(input_ids=inputs["input_ids"]).logits[..., : layout.num_codes]
            return F.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())

        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(examples)  # type: ignore[arg-type]

    class Keep(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            theirs.extend([logs["loss"]] if "loss" in logs else [])

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "stock"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=3e-3,
        lr_scheduler_type="linear",
        warmup_steps=0,
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=settings.weight_decay,
        max_grad_norm=0.5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    Stock(model, arguments, train_dataset=examples, callbacks=[Keep()]).train()  # type: ignore[arg-type]
    losses = [float(train.update(ours)["train_nats"]) for _ in range(STEPS)]
    assert losses[-1] < 0.8 * losses[0]
    assert theirs == pytest.approx(losses, rel=1e-4)  # Trainer rounds what it logs to 4 digits behind the point
    for (name, weight), other in zip(ours.prior.model.named_parameters(), model.parameters(), strict=True):
        # Adam divides by the root of tiny second moments: rounding grows along the steps
        assert (weight - other).norm() <= 2e-3 * other.norm(), name
