"""Drawing token sequences, ours against `generate` of transformers on the same weights, in one run.

`stock_...`: `generate` with a static cache, full sampling, ids of classes suppressed; `stock_dynamic_...`: with its
default cache; `stock_compiled_...`: static, its step compiled (on request, which takes minutes). `fp32_...`, `fast_...`
(bfloat16 products) and `guided_...` are `sample_tokens`, each against the stock model in float32 with a static cache;
`guided` against `generate` with `guidance_scale` and the null prompt as negative prompt, whose own pass has a dynamic
cache because transformers offers no other there, in float32 both. Names of other lengths than 64 tokens end in the
length: `fp32_b64_t256`.

The limit of a batch of R rows and T tokens, from two rates measured in the same run (a float32 product of
2048 x 2048 x 2048, and reading 400 MB):
    products  2 R T (matrices + 2 L W (T + 1) / 2)        floating-point operations; L blocks of width W
    bytes     4 T (matrices + 2 R L W (T + 1) / 2)        weights, and keys and values so far, once a step
and the limit is the sum of the larger of the two for each step; `of_limit` is its share of our seconds.
`draw_of_step` is the share of the draw, among 16,384 codes, in one step of model and draw.

With `--levels` alone, 128 tokens of one level of 8x16 codes, and of two levels of 8x8: flat, interleaved, and with one
block of the same model as a head over depth; the ratios are tokens a second over those of one level.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import reference_prior as reference
from timing import faster_by, interleaved, row, tell

BATCHES = (1, 16, 64)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    parser.add_argument("--tokens", type=int, nargs="+", default=[64], help="of a sequence, such as 64 and 256")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--compiled", action="store_true", help="against compiled generate too, which takes minutes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--levels", action="store_true", help="two levels against one of as many tokens, and no more")
    parser.add_argument("--prior", type=Path, help="a trained prior: what the fast precision does to it is told, too")
    parser.add_argument("--codes", type=Path, help="with --prior: the code store it was trained on")


def random_prior(num_tokens: int, num_codes: int = reference.K) -> Any:
    """Return a prior with weights of usual sizes, the ones that start at zero included."""
    return with_random_weights(reference.spec(num_tokens, num_codes))


def with_random_weights(spec: Any, *, order: Any = "raster", depth_blocks: int = 0) -> Any:
    """Return a prior of any shapes with such weights."""
    import torch

    from stage2_prior.prior import build_prior

    names, sizes = tuple(f"class {n}" for n in range(reference.CLASSES)), reference.architecture()
    if depth_blocks:
        sizes.depth_blocks = depth_blocks
    prior = build_prior(sizes, spec, codec_id="c" * 64, label_names=names, order=order)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in prior.model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
    return prior


def stock(
    prior: Any, batch_size: int, *, cache: str = "static", compiled: bool = False, guidance_scale: float | None = None
) -> Any:
    """Return tokens [B, T] drawn by `generate`."""
    import torch
    from transformers import CompileConfig, GenerationConfig

    layout = prior.layout
    prompts = layout.prompt(torch.arange(batch_size) % reference.CLASSES)[:, None]
    more: dict[str, Any] = {}
    if guidance_scale is not None:
        null = torch.full_like(prompts, layout.null_token)
        more = {"negative_prompt_ids": null, "negative_prompt_attention_mask": torch.ones_like(null)}
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=layout.num_tokens,
        suppress_tokens=list(range(layout.num_codes, layout.vocab_size)),
        guidance_scale=guidance_scale,
        cache_implementation=cache,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    if compiled:
        config.compile_config = CompileConfig()
        config.compile_config._compile_all_devices = True  # else on accelerators only
    with torch.inference_mode():
        drawn = prior.model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=config, **more)
    return drawn[:, 1:]


def ours(prior: Any, batch_size: int, **settings: Any) -> Any:
    """Return tokens [B, T] drawn by our sampler."""
    import torch

    from stage2_prior.sampling import sample_tokens

    labels = torch.arange(batch_size) % reference.CLASSES
    return sample_tokens(prior, labels, seed=0, indices=range(batch_size), **settings)


def measured_rates() -> tuple[float, float]:
    """Return floating-point operations and bytes a second, the best of some tries."""
    import torch

    a, large = torch.randn(2048, 2048), torch.ones(100_000_000)

    def best(function: Callable[[], object]) -> float:
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    return 2 * 2048**3 / best(lambda: a @ a), large.nbytes / best(large.sum)


def limit(batch_size: int, num_tokens: int, rates: tuple[float, float]) -> float:
    """Return the least seconds of a batch in float32; see the head of this file."""
    matrices, per_position = reference.matrices_per_token(), 2 * reference.LAYERS * reference.WIDTH
    seconds = 0.0
    for length in range(1, num_tokens + 1):
        operations = 2 * batch_size * (matrices + per_position * length)
        read = 4 * (matrices + batch_size * per_position * length)
        seconds += max(operations / rates[0], read / rates[1])
    return seconds


def contenders(prior: Any, batch_size: int, *, compiled: bool) -> dict[str, Callable[[], object]]:
    """Return what draws a batch, by name."""
    B = batch_size
    made: dict[str, Callable[[], object]] = {
        f"stock_b{B}": partial(stock, prior, B),
        f"fp32_b{B}": partial(ours, prior, B),
        f"fast_b{B}": partial(ours, prior, B, precision="bf16"),
        f"stock_dynamic_b{B}": partial(stock, prior, B, cache="dynamic"),
    }
    if compiled:
        made[f"stock_compiled_b{B}"] = partial(stock, prior, B, compiled=True)
    if B == 16:
        made["stock_guided_b16"] = partial(stock, prior, B, guidance_scale=2.0)
        made["guided_b16"] = partial(ours, prior, B, guidance_scale=2.0)
    return made


def draw_shares(*, rounds: int, num_codes: int = 16_384, batch_size: int = 64) -> dict[str, float]:
    """Return which share of a step, of the model and the draw, the draw takes, by precision."""
    import torch

    from stage2_prior.sampling import filtered_probabilities, inverse_cdf

    prior, uniforms = random_prior(64, num_codes), torch.rand(batch_size)
    tokens = torch.zeros(batch_size, dtype=torch.int64)
    shares = {}
    for precision in ("fp32", "bf16"):
        decoder = prior.decoder(precision)
        cache = decoder.new_cache(batch_size)
        step = partial(decoder.step, tokens, 32, cache, 0, num_codes)  # in the middle of the sequence
        with torch.inference_mode():
            logits = step()
            draw = lambda logits=logits: inverse_cdf(filtered_probabilities(logits), uniforms)  # noqa: E731
            seconds = interleaved({"step": step, "draw": draw}, rounds=10 * rounds)
        share = median(seconds["draw"]) / (median(seconds["draw"]) + median(seconds["step"]))
        shares[f"draw_of_step_k{num_codes}_b{batch_size}_{precision}"] = share
    return shares


def precision_effect(prior_folder: Path, store: Path, num_rows: int = 512) -> dict[str, float]:
    """Return what the fast precision does on held-out rows: how often another token is likeliest, and nats of both."""
    import torch
    import torch.nn.functional as F

    from stage2_prior.prior import load_prior, shifted
    from stage2_prior.sequences import Sequences
    from vq_prior.core.disk.code_store import CodeStore

    prior = load_prior(prior_folder)
    layout = prior.layout
    tokens, labels = Sequences.read(CodeStore.open(store, "validation"), layout, max_rows=num_rows).batch(slice(None))
    inputs = shifted(layout, tokens, labels)
    decoders = {precision: prior.decoder(precision) for precision in ("fp32", "bf16")}
    caches = {precision: decoder.new_cache(len(tokens)) for precision, decoder in decoders.items()}
    nats, other = dict.fromkeys(decoders, 0.0), 0
    with torch.inference_mode():
        for position in range(layout.num_tokens):
            low, high = layout.legal_range(position)
            likeliest = []
            for name, decoder in decoders.items():
                logits = decoder.step(inputs[:, position], position, caches[name], low, high)
                nats[name] += float(F.cross_entropy(logits, tokens[:, position] - low)) / layout.num_tokens
                likeliest.append(logits.argmax(-1))
            other += int((likeliest[0] != likeliest[1]).sum())
    told = {f"held_out_nats_{name}": value for name, value in nats.items()}
    return {"other_likeliest": other / tokens.numel()} | told


def run_levels(arguments: argparse.Namespace) -> None:
    """Measure and tell how fast two levels are drawn beside one of as many tokens."""
    from vq_prior.core.spec import CodeSpec, LevelSpec

    shape = (32, 64)
    one = CodeSpec(3, shape, (LevelSpec((8, 16), reference.K),))
    two = CodeSpec(3, shape, (LevelSpec((8, 8), reference.K),) * 2)
    priors = {
        "one": with_random_weights(one),
        "flat": with_random_weights(two),
        "interleaved": with_random_weights(two, order="interleaved"),
        "depth": with_random_weights(two, order="interleaved", depth_blocks=1),
    }
    rows, ratios = [], {}
    for B in arguments.batch_sizes:
        seconds = interleaved(
            {name: partial(ours, prior, B) for name, prior in priors.items()}, rounds=arguments.rounds
        )
        rows += [row(f"{name}_b{B}_t128", s, images_per_second=B / median(s)) for name, s in seconds.items()]
        ratios |= {f"{name}_b{B}_t128": faster_by(name, "one", seconds) for name in priors if name != "one"}
    tell("sample", rows, ratios, arguments)


def run(arguments: argparse.Namespace) -> None:
    """Measure and tell."""
    if arguments.levels:
        run_levels(arguments)
        return
    effect = precision_effect(arguments.prior, arguments.codes) if arguments.prior and arguments.codes else {}
    rows, ratios, limits = [], {}, draw_shares(rounds=arguments.rounds)
    rates = measured_rates()
    priors = {T: random_prior(T) for T in arguments.tokens}
    for T, B in product(arguments.tokens, arguments.batch_sizes):
        seconds = interleaved(contenders(priors[T], B, compiled=arguments.compiled), rounds=arguments.rounds)
        end = reference.ending(T)
        rows += [row(name + end, s, images_per_second=B / median(s)) for name, s in seconds.items()]
        against = {f"fp32_b{B}": f"stock_b{B}", f"fast_b{B}": f"stock_b{B}", "guided_b16": "stock_guided_b16"}
        ratios |= {f"{a}{end}": faster_by(a, b, seconds) for a, b in against.items() if a in seconds}
        for other in ("dynamic", "compiled"):
            if f"stock_{other}_b{B}" in seconds:
                ratios[f"fp32_vs_{other}_b{B}{end}"] = faster_by(f"fp32_b{B}", f"stock_{other}_b{B}", seconds)
        limits[f"of_limit_b{B}{end}"] = limit(B, T, rates) / median(seconds[f"fp32_b{B}"])
    more = {"tokens": arguments.tokens, "operations_per_second": rates[0], "bytes_per_second": rates[1]}
    for name, share in (limits | effect).items():
        print(f"{share:10.4f}    {name}")
    tell("sample", rows, ratios, arguments, limits=limits, effect=effect, **more)
