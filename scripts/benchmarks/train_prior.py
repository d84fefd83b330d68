"""A training step of stage two, ours against a stock Llama of the same sizes.

A step is all that happens between two measurements: rows from codes in memory, dropouts, forward, backward, clip,
optimiser, averaged weights. `llama_fp32` is `LlamaForCausalLM` of transformers with its fused attention and the fused
AdamW of torch (the faster one, also on a CPU), on tokens that are there already; `ours_fp32` is
`stage2_prior.train.update` in float32, with norms of queries and keys that the Llama lacks; `ours_default` takes the
precision that the command chooses on this machine.
Codes are noise: a step costs the same. Names of other lengths than 64 tokens end in the length: `fp32_vs_llama_t256`.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import reference_prior as reference
from timing import RoundSeconds, faster_by, interleaved, row, tell


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    parser.add_argument("--tokens", type=int, nargs="+", default=[64], help="of a sequence, such as 64 and 256")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens of one optimiser step")
    parser.add_argument("--steps", type=int, default=2, help="steps of one contender in one round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--optimizer", choices=("adamw", "muon"), default="adamw", help="of ours; the stock model has adamw"
    )


def our_training(store: Path, out: Path, precision: Any, *, tokens: int, arguments: argparse.Namespace) -> Any:
    """Return a run of `train-prior` at step 0, on sequences of `tokens`."""
    from stage2_prior.opening import at_default_precision
    from stage2_prior.run import prepare
    from stage2_prior.settings import CodeFacts, TrainPrior, resolve
    from vq_prior.core.disk.code_store import CodeStore
    from vq_prior.core.processes.runtime import start_runtime

    train, held_out = CodeStore.open(store, "train"), CodeStore.open(store, "validation")
    settings = TrainPrior(
        codes=store,
        out=out,
        batch_size=arguments.batch_tokens // tokens,
        precision=precision,
        optimizer=arguments.optimizer,
        model=reference.architecture(),
    )
    many = 50_000  # rows, as the default precision is chosen for
    runtime = at_default_precision(start_runtime(precision), settings, many)
    facts = CodeFacts(tokens, reference.K, many)
    settings = replace(resolve(settings, facts, runtime.device.type), precision=runtime.precision)
    return prepare(settings, runtime, train, held_out, None)


class StockLlama:
    """What people write."""

    def __init__(self, num_tokens: int, batch_size: int) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=reference.K + reference.CLASSES + 1,
            hidden_size=reference.WIDTH,
            intermediate_size=reference.FEED_FORWARD,
            num_hidden_layers=reference.LAYERS,
            num_attention_heads=reference.HEADS,
            num_key_value_heads=reference.HEADS,
            max_position_embeddings=num_tokens + 1,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )
        self.model = LlamaForCausalLM(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.tokens = torch.randint(0, reference.K, (batch_size, num_tokens + 1))

    def step(self) -> None:
        """Take one step."""
        import torch
        import torch.nn.functional as F

        logits = self.model(input_ids=self.tokens[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), self.tokens[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def measured(num_tokens: int, arguments: argparse.Namespace) -> tuple[RoundSeconds, str]:
    """Return the seconds of `arguments.steps` steps of each contender in each round, and our default precision."""
    from stage2_prior.train import update

    with TemporaryDirectory(prefix="vq-prior-") as temporary:
        store = reference.write_noise(Path(temporary) / "codes", num_tokens)
        llama = StockLlama(num_tokens, arguments.batch_tokens // num_tokens)
        ours = {
            name: our_training(store, Path(temporary) / name, precision, tokens=num_tokens, arguments=arguments)
            for name, precision in (("ours_fp32", "fp32"), ("ours_default", None))
        }
        steps = {"llama_fp32": llama.step} | {name: partial(update, training) for name, training in ours.items()}

        def several(step: Any) -> None:
            for _ in range(arguments.steps):
                step()

        seconds = interleaved({name: partial(several, step) for name, step in steps.items()}, rounds=arguments.rounds)
    return seconds, ours["ours_default"].runtime.precision


def run(arguments: argparse.Namespace) -> None:
    """Measure and tell."""
    rows, ratios, precision = [], {}, ""
    for T in arguments.tokens:
        seconds, precision = measured(T, arguments)
        end = reference.ending(T)
        tokens = arguments.steps * (arguments.batch_tokens // T) * T
        flops = 6 * reference.matrices_per_token() * tokens
        rows += [
            row(name + end, s, tokens_per_second=tokens / median(s), gflops_of_matrices=flops / median(s) / 1e9)
            for name, s in seconds.items()
        ]
        ratios[f"fp32_vs_llama{end}"] = faster_by("ours_fp32", "llama_fp32", seconds)
        ratios[f"default_vs_llama{end}"] = faster_by("ours_default", "llama_fp32", seconds)
    tell("train-prior", rows, ratios, arguments, tokens=arguments.tokens, default_precision=precision)
