"""Drawing token sequences: filters, guidance, and one uniform number a token.

Letters: B samples, R rows of one call (B padded), T positions, K legal ids of a position.
"""

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stage2_prior.decoder import PLACES, Cache, Decoder
from stage2_prior.layout import SequenceLayout
from stage2_prior.prior import Prior
from vq_prior.core.errors import NumericError, UsageError
from vq_prior.core.processes.runtime import Precision
from vq_prior.core.training.randomness import MAX_SEED, sample_uniforms

PRECISIONS = ("fp32", "bf16")
SMALLEST_TEMPERATURE = 1e-30  # what is smaller takes the likeliest all the same; float32 holds 1e-38
BLOCK = 128
ROW_MULTIPLE = 8
FIXED_ROWS = 64


def check_sampling(
    layout: SequenceLayout,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    guidance_scale: float = 1.0,
    guidance_power: float | None = None,
    precision: Precision = "fp32",
) -> None:
    """Check sampling settings against a prior's layout.

    Raises:
        UsageError: Naming the setting, what was given and what is allowed.
    """
    largest = max(layout.level_sizes)
    if not (math.isfinite(temperature) and temperature > 0):
        raise UsageError(f"temperature must be positive and finite, got {temperature}; 1 samples what was learnt")
    if top_k is not None and not 1 <= top_k <= largest:
        raise UsageError(
            f"top_k must be between 1 and {largest} (this prior's codebook size), got {top_k}; lower it or leave it out"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top_p must be above 0 and at most 1, got {top_p}; leave it out to keep every code")
    if min_p is not None and not 0 <= min_p < 1:
        raise UsageError(f"min_p must be at least 0 and below 1, got {min_p}; leave it out to keep every code")
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise UsageError(f"guidance_scale must be at least 0 and finite, got {guidance_scale}; 1 is off")
    if guidance_scale != 1 and not layout.num_classes:
        raise UsageError(f"guidance_scale must be 1 for a prior without classes, got {guidance_scale}; leave it out")
    if guidance_power is not None and not (math.isfinite(guidance_power) and guidance_power > 0):
        raise UsageError(f"guidance_power must be positive and finite, got {guidance_power}; leave it out for none")
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def filtered_probabilities(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Return the distribution that tokens are drawn from, [R, K] float32; rows need not sum to 1.

    In this order: divide by the temperature; keep the `top_k` likeliest (and what ties
    with the last of them); then the smallest set of the likeliest whose renormalised
    probability reaches `top_p` (Holtzman et al. 2020, eq. 2-3); then drop what is less likely than `min_p`
    times the likeliest (Nguyen et al. 2024, eq. 1-3). What is dropped has probability exactly 0.

    Args:
        logits: [R, K] float32, finite.
        temperature: Positive.
        top_k: Between 1 and any number; None is off.
        top_p: In (0, 1]; None is off.
        min_p: In [0, 1); None is off.
    """
    scaled = logits - logits.amax(dim=-1, keepdim=True)
    if temperature != 1:
        scaled.div_(max(temperature, SMALLEST_TEMPERATURE))
    if top_k is not None and top_k < logits.shape[-1]:
        scaled.masked_fill_(scaled < scaled.topk(top_k, dim=-1).values[:, -1:], -math.inf)
    weights = scaled.exp_()
    if top_p is not None and top_p < 1:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        reached = ordered.cumsum(dim=-1, dtype=torch.float64)
        dropped = reached - ordered >= top_p * reached[:, -1:]
        dropped[:, 0] = False
        weights = weights.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), 0.0)
    if min_p is not None and min_p > 0:
        weights = weights.masked_fill(weights < min_p, 0.0)  # the likeliest has weight exactly 1
    return weights


def guidance_at(num_tokens: int, *, guidance_scale: float, guidance_power: float | None) -> list[float]:
    """Return the guidance scale of each of T positions.

    Constant without a power. With power p, 1 + (scale - 1) (1 - cos(pi (t / T)^p)) / 2 at position t (Gao et al. 2023,
    "MDTv2", the power-cosine schedule; Yu et al. 2024, "RAR", for tokens): the first tokens, which
    choose what the image shows, are drawn almost freely.

    >>> [round(scale, 2) for scale in guidance_at(4, guidance_scale=3.0, guidance_power=1.0)]
    [1.0, 1.29, 2.0, 2.71]
    """
    if guidance_power is None:
        return [guidance_scale] * num_tokens
    share = (0.5 - 0.5 * math.cos(math.pi * (t / num_tokens) ** guidance_power) for t in range(num_tokens))
    return [1 + (guidance_scale - 1) * part for part in share]


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return the first id whose cumulative weight exceeds u times the total, [R] int64.

    In two steps, first among blocks of ids, then within one: running sums over all ids would take longer than
    everything else about a draw. An id of weight 0 is never returned, since its cumulative weight is that of the id
    before it.

    Args:
        weights: [R, K], at least 0, not all 0 in a row.
        uniforms: [R] in [0, 1).
    """
    blocks, ends = _blocks(weights)
    wanted = uniforms.double()[:, None] * ends[:, -1:]
    # A row that is not finite would search beyond the end.
    block = torch.searchsorted(ends, wanted, right=True).clamp_(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inside = blocks.gather(1, block[..., None].expand(-1, 1, BLOCK))[:, 0].double().cumsum(-1)
    # The block's sum above and this one are rounded differently.
    rest = torch.minimum(wanted - before, inside[:, -1:].nextafter(torch.zeros_like(before)))
    return (block * BLOCK + torch.searchsorted(inside, rest, right=True))[:, 0]


def _blocks(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights in blocks of ids, [R, blocks, BLOCK], and the running sum at the end of each, [R, blocks]."""
    missing = -weights.shape[1] % BLOCK
    padded = F.pad(weights, (0, missing)) if missing else weights  # padding by nothing copies
    blocks = padded.unflatten(1, (-1, BLOCK))
    return blocks, blocks.sum(-1).double().cumsum(-1)


@torch.inference_mode()
def sample_tokens(
    prior: Prior,
    labels: Tensor,
    *,
    seed: int,
    indices: Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    guidance_scale: float = 1.0,
    guidance_power: float | None = None,
    precision: Precision = "fp32",
    prefix: Tensor | None = None,
) -> Tensor:
    """Return token sequences drawn from the prior, [B, T] int64.

    Row b is sample `indices[b]`: one uniform number per position, a function of
    (seed, index, position), turned into a token by the inverse CDF of the filtered
    distribution. What a row becomes does not depend on the other rows or their number.

    Args:
        prior: A trained prior in eval mode.
        labels: Class of each sample, [B] int64; `prior.layout.null_label` for unconditional.
        seed: Seed of the whole set, in [0, 2**63).
        indices: B sample indices.
        temperature: Divides the logits; smaller is more conservative. Must be positive.
        top_k: Keep the k likeliest tokens of each step.
        top_p: Then keep the smallest set whose probability reaches p, in (0, 1].
        min_p: Then drop tokens less likely than p times the likeliest, in [0, 1).
        guidance_scale: Classifier-free guidance (Ho and Salimans 2022, eq. 6, as
            l_null + scale * (l_label - l_null)); 1 costs no second pass.
        guidance_power: Lets guidance rise from 1 to `guidance_scale` along the tokens; see `guidance_at`.
        precision: Of the matrix products. bf16 is faster where the machine computes in it, and gives other images.
        prefix: First P tokens of each sample, [B, P] int64, taken as they are; their uniform numbers stay unused.

    Raises:
        UsageError: If a setting is out of range, rows do not fit each other, or a prefix holds an illegal id.
        NumericError: If the model gives logits that are not finite.
    """
    layout = prior.layout
    filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    guidance = {"guidance_scale": guidance_scale, "guidance_power": guidance_power}
    check_sampling(layout, precision=precision, **guidance, **filters)  # type: ignore[arg-type]
    _check_rows(layout, labels, seed, indices)
    _check_guidance(prior, guidance_scale)
    prefix = checked_prefix(layout, prefix, len(indices))
    decoder = prior.decoder(precision)
    B, passes = len(indices), 1 if guidance_scale == 1 else 2
    rows = call_rows(decoder, B, passes)
    pieces = [torch.empty((0, layout.num_tokens), dtype=torch.int64)]
    uniforms = torch.from_numpy(sample_uniforms(seed, np.asarray(indices, dtype=np.int64), layout.num_tokens))
    for first in range(0, B, rows):
        here = slice(first, min(first + rows, B))
        prompt, draws, forced = (_padded(part[here], rows) for part in (labels.cpu(), uniforms, prefix))
        prompts = [layout.prompt(prompt), torch.full_like(prompt, layout.null_token)][:passes]
        inputs = [part.to(decoder.device) for part in (torch.cat(prompts), draws, forced)]
        scales = guidance_at(layout.num_tokens, **guidance)  # type: ignore[arg-type]
        pieces.append(_draw(decoder, here.stop - first, layout, inputs, scales, filters).cpu())
    return torch.cat(pieces).to(labels.device)


def _check_guidance(prior: Prior, guidance_scale: float) -> None:
    if guidance_scale != 1 and not prior.unconditional:
        raise UsageError(
            "guidance_scale must be 1 for a prior trained with label_dropout 0, which knows no null prompt"
        )


def _check_rows(layout: SequenceLayout, labels: Tensor, seed: int, indices: Sequence[int]) -> None:
    if labels.ndim != 1 or labels.shape[0] != len(indices):
        raise UsageError(f"labels and indices must be as many, got {list(labels.shape)} and {len(indices)}")
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= layout.null_label):
        wrong = int(labels[(labels < 0) | (labels > layout.null_label)][0])
        raise UsageError(f"labels must lie in [0, {layout.null_label}], got {wrong}")
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed must be at least 0 and below 2**63, got {seed}")
    if len(indices) and not (min(indices) >= 0 and max(indices) < 2**63):
        raise UsageError(f"indices must be at least 0 and below 2**63, got {min(indices)} to {max(indices)}")


def _padded(part: Tensor, rows: int) -> Tensor:
    """Return `rows` rows: those given, then copies of the first."""
    return torch.cat([part, part[:1].expand(rows - part.shape[0], *part.shape[1:])])


def checked_prefix(layout: SequenceLayout, prefix: Tensor | None, num_samples: int) -> Tensor:
    """Return the prefix on the host, [B, P]; of no tokens if there is none.

    Raises:
        UsageError: If it has another number of rows, more tokens than a sequence, or an illegal id.
    """
    if prefix is None:
        return torch.empty((num_samples, 0), dtype=torch.int64)
    if prefix.ndim != 2 or prefix.shape[0] != num_samples or prefix.shape[1] > layout.num_tokens:
        raise UsageError(
            f"prefix must be [{num_samples}, at most {layout.num_tokens}] tokens, got {list(prefix.shape)}"
        )
    for first, end, low, high in layout.segments:
        part = prefix[:, first:end]
        wrong = part[(part < low) | (part >= high)]
        if wrong.numel():
            raise UsageError(
                f"prefix must hold ids in [{low}, {high}) at positions {first} to {end - 1}, got {int(wrong[0])}"
            )
    return prefix.cpu()


def _draw(
    decoder: Decoder,
    num_samples: int,
    layout: SequenceLayout,
    inputs: Sequence[Tensor],
    guidance: Sequence[float],
    filters: dict[str, float | int | None],
) -> Tensor:
    """Return tokens [num_samples, T].

    Args:
        decoder: The model.
        num_samples: Those of the R rows that are wanted; the others fill up the call.
        layout: Which ids are legal where.
        inputs: Prompts [R], or [2 R] with the null rows behind; uniform numbers [R, T]; first tokens [R, P].
        guidance: Scale at each position.
        filters: Of `filtered_probabilities`.
    """
    prompts, uniforms, forced = inputs
    R, T = uniforms.shape
    passes = prompts.shape[0] // R
    cache = decoder.new_cache(attended_rows(decoder, num_samples, R, passes))
    tokens = torch.empty((R, T), dtype=torch.int64, device=prompts.device)
    finite = torch.ones((), dtype=torch.bool, device=prompts.device)
    current = prompts
    for first, end, low, high in layout.segments:
        for position in range(first, end):
            logits = decoder.step(current, position, cache, low, high)
            if passes == 2:
                null = logits[R:]
                logits = null + guidance[position] * (logits[:R] - null)
            finite &= logits.sum().isfinite()  # which takes less time than to look at each
            if position < forced.shape[1]:
                drawn = forced[:, position]
            else:
                weights = filtered_probabilities(logits, **filters)  # type: ignore[arg-type]
                # What a row that is not finite gives is refused below.
                drawn = inverse_cdf(weights, uniforms[:, position]).clamp_(max=high - low - 1) + low
            tokens[:, position] = drawn
            current = drawn.repeat(passes) if passes > 1 else drawn
    if not bool(finite):
        raise NumericError("the prior gives logits that are not finite; its weights or the guidance scale are broken")
    return tokens[:num_samples]


_MEASURED: "WeakKeyDictionary[Decoder, dict[tuple[int, int], bool]]" = WeakKeyDictionary()
_ATTENTION_ALONE = 0  # stands where a key has the number of passes


def call_rows(decoder: Decoder, num_samples: int, passes: int) -> int:
    """Return the samples of one call: `num_samples` padded to a multiple of 8, or the fixed number 64.

    Matrix products may round differently at another row count. Multiples of 8 were measured not to on
    the CPU; here the model's own layers are measured at the very row count, and where a bit differs every call
    of this model has the same fixed count.

    Args:
        decoder: The model.
        num_samples: Samples wanted.
        passes: 2 with guidance, else 1.
    """
    wanted = max(1, -(-num_samples // ROW_MULTIPLE)) * ROW_MULTIPLE
    measured = _MEASURED.setdefault(decoder, {})
    # The fixed count is measured first and always: which counts were asked for before decides nothing.
    if not _measure(decoder, FIXED_ROWS, passes, measured):
        return FIXED_ROWS
    return wanted if _measure(decoder, wanted, passes, measured) else FIXED_ROWS


def attended_rows(decoder: Decoder, num_samples: int, rows: int, passes: int) -> int:
    """Return for how many rows of a call attention is computed: the samples that are wanted, without the padding,
    where that was measured to leave every bit as it is; else, and with guidance, all.

    Attention is the only part of a step that grows along the sequence, so that this matters where few samples are
    drawn.
    """
    if passes > 1 or num_samples == rows:
        return passes * rows
    measured = _MEASURED.setdefault(decoder, {})
    key = (num_samples, _ATTENTION_ALONE)
    if key not in measured:
        few, many = decoder.new_cache(ROW_MULTIPLE), decoder.new_cache(num_samples)
        pick = (torch.arange(num_samples) % ROW_MULTIPLE).to(decoder.device)
        _fill_alike(few, many, pick)
        measured[key] = _attention_is_invariant(decoder, few, many, pick)
    return num_samples if measured[key] else rows


def _measure(decoder: Decoder, samples: int, passes: int, measured: dict[tuple[int, int], bool]) -> bool:
    key = (samples, passes)
    if key not in measured:
        reference = ROW_MULTIPLE * passes
        measured[key] = samples == ROW_MULTIPLE or rows_are_invariant(decoder, reference, samples * passes)
    return measured[key]


@torch.inference_mode()
def rows_are_invariant(decoder: Decoder, reference: int, rows: int) -> bool:
    """Return whether `rows` rows (a multiple of `reference`) give the bits of `reference` rows.

    Runs the attention of one layer at every position, then the whole decoder at the first, second, middle
    and last position, on equal rows with keys and values in the cache, and compares what tokens are drawn
    from.
    """
    T, vocabulary = decoder.max_length - 1, decoder.vocab_size
    generator = torch.Generator().manual_seed(0)
    few, many = decoder.new_cache(reference), decoder.new_cache(rows)
    pick = (torch.arange(rows) % reference).to(decoder.device)
    _fill_alike(few, many, pick)
    if not _attention_is_invariant(decoder, few, many, pick):
        return False
    for position in sorted({0, min(1, T - 1), T // 2, T - 1}):
        tokens = torch.randint(vocabulary, (reference,), generator=generator).to(decoder.device)
        first = decoder.step(tokens, position, few, 0, vocabulary)
        second = decoder.step(tokens[pick], position, many, 0, vocabulary)
        of_few, of_many = (_blocks(filtered_probabilities(logits)) for logits in (first, second))
        if not all(torch.equal(a[pick], b) for a, b in zip(of_few, of_many, strict=True)):
            return False
    return True


def _fill_alike(few: Cache, many: Cache, pick: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    few.keys.copy_(torch.randn(few.keys.shape, generator=generator))
    few.values.copy_(torch.randn(few.values.shape, generator=generator))
    many.keys.copy_(few.keys[:, :, pick])
    many.values.copy_(few.values[:, pick])


@torch.inference_mode()
def _attention_is_invariant(decoder: Decoder, few: Cache, many: Cache, pick: Tensor) -> bool:
    shape = (few.rows, decoder.num_heads, decoder.head_dim)
    q = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(decoder.device)
    for position in range(decoder.max_length - 1):
        k = few.keys[0, position // PLACES, ..., position % PLACES].clone()  # which writing leaves as they are
        v = few.values[0, :, :, position].clone()
        first = decoder.attend(q, k, v, few, 0, position)
        if not torch.equal(first[pick], decoder.attend(q[pick], k[pick], v[pick], many, 0, position)):
            return False
    return True
