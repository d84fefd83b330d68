"""What our default recipe of stage two reaches in a share of the seconds that a plain recipe has.

The plain recipe trains a stock Llama on the same code store: batches of 64 sequences, AdamW as torch sets it at 1e-3,
falling linearly to 0 with the seconds, label dropout 0.1, float32. Ours is `train-prior` with nothing set but its
steps: as many as fit into the share, by the time of its first ones. One after the other on the same threads; the
seconds in which held-out rows are measured do not count. A `nats_ratio` below 1 says that ours got further in less
time.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from timing import row, tell

ROWS_AT_ONCE = 250


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    parser.add_argument("--codes", type=Path, required=True, help="code store of one level, with labels")
    parser.add_argument("--seconds", type=float, default=600.0, help="of the plain recipe")
    parser.add_argument("--share", type=float, default=0.6, help="of those seconds, for ours")
    parser.add_argument("--layers", type=int, default=8, help="of the stock Llama")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--same-size", action="store_true", help="ours has these sizes too, not the default ones")
    parser.add_argument("--batch-size", type=int, default=64, help="of the plain recipe")


def plain_recipe(layout: Any, train: Any, held_out: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Return held-out nats per token, steps and seconds of the plain recipe.

    Args:
        layout: What ids mean.
        train: Tokens [n, T] and labels [n] of the training rows.
        held_out: Those of the held-out rows.
        arguments: The flags.
    """
    import torch
    import torch.nn.functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens, labels = train
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=layout.vocab_size,
        hidden_size=arguments.width,
        intermediate_size=-(-8 * arguments.width // 3 // 32) * 32,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.heads,
        max_position_embeddings=layout.num_tokens + 1,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def nats(rows: Any, prompts: Any) -> Any:
        inputs = torch.cat([prompts[:, None], rows[:, :-1]], dim=1)
        logits = model(input_ids=inputs, use_cache=False).logits[..., : layout.num_codes]
        return F.cross_entropy(logits.flatten(0, 1), rows.flatten())

    steps, order = 0, torch.empty(0, dtype=torch.int64)
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < arguments.seconds:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - spent / arguments.seconds)
        order = order if len(order) else torch.randperm(len(tokens))
        rows, order = order[: arguments.batch_size], order[arguments.batch_size :]
        dropped = torch.rand(len(rows)) < 0.1
        loss = nats(tokens[rows], torch.where(dropped, layout.null_token, layout.prompt(labels[rows])))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for some, classes in zip(*(part.split(ROWS_AT_ONCE) for part in held_out), strict=True):
            total += float(nats(some, layout.prompt(classes))) * len(some)
    parameters = sum(p.numel() for p in model.parameters())
    return {"nats": total / len(held_out[0]), "steps": steps, "seconds": spent, "parameters": parameters}


def our_recipe(settings: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Return held-out nats per token, steps and seconds of `train-prior`; see the head of this file."""
    from stage2_prior.opening import at_default_precision
    from stage2_prior.run import prepare
    from stage2_prior.settings import CodeFacts, resolve
    from stage2_prior.train import held_out_loss, update
    from vq_prior.core.disk.code_store import CodeStore
    from vq_prior.core.processes.runtime import start_runtime

    train, held_out = (CodeStore.open(settings.codes, split) for split in ("train", "validation"))
    level = train.spec.levels[0]
    facts = CodeFacts(level.num_tokens, level.num_codes, len(train))
    runtime = at_default_precision(start_runtime(None), settings, len(train))

    def fresh(steps: int) -> Any:
        chosen = dataclasses.replace(settings, steps=steps, precision=runtime.precision, eval_rows=len(held_out))
        return prepare(resolve(chosen, facts, runtime.device.type), runtime, train, held_out, None)

    def run(training: Any, steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            update(training)
        return time.perf_counter() - started

    trial = fresh(1000)
    run(trial, 5)
    steps = max(1, int(arguments.share * arguments.seconds / (run(trial, 20) / 20)))
    training = fresh(steps)
    seconds = run(training, steps)
    with training.average.swapped_into(training.prior.model):
        nats, _ = held_out_loss(training)
    parameters = sum(p.numel() for p in training.prior.model.parameters())
    return {"nats": nats, "steps": steps, "seconds": seconds, "parameters": parameters}


def run(arguments: argparse.Namespace) -> None:
    """Measure and tell."""
    from stage2_prior.layout import SequenceLayout
    from stage2_prior.sequences import Sequences
    from stage2_prior.settings import PriorModel, TrainPrior
    from vq_prior.core.disk.code_store import CodeStore

    stores = [CodeStore.open(arguments.codes, split) for split in ("train", "validation")]
    layout = SequenceLayout.from_spec(stores[0].spec, len(stores[0].index.label_names))
    train, held_out = (Sequences.read(store, layout).batch(slice(None)) for store in stores)
    model = PriorModel()
    if arguments.same_size:
        sizes = {"hidden_size": arguments.width, "num_layers": arguments.layers, "num_heads": arguments.heads}
        model = PriorModel(**sizes)
    told = {"plain": plain_recipe(layout, train, held_out, arguments)}
    print(f"plain: {told['plain']}", flush=True)
    with TemporaryDirectory(prefix="vq-prior-") as temporary:
        settings = TrainPrior(codes=arguments.codes, out=Path(temporary) / "run", model=model)
        told["ours"] = our_recipe(settings, arguments)
    rows = [row(name, [value.pop("seconds")], **value) for name, value in told.items()]
    ratios = {
        "nats_ratio": told["ours"]["nats"] / told["plain"]["nats"],
        "seconds_ratio": rows[1]["seconds"] / rows[0]["seconds"],
    }
    tell("recipe", rows, ratios, arguments, codes=str(arguments.codes))
