"""Drawing token sequences: one uniform number a token, and what is given in place of drawing.

Letters: B samples, R rows of one call (B padded), T positions, K legal ids of a position.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stage2_prior.conditions import Conditioned
from stage2_prior.decoder import Decoder
from stage2_prior.fast.invariance import attended_rows, rows_of_calls, thread_choice
from stage2_prior.filters import filtered_probabilities, guidance_at, inverse_cdf
from stage2_prior.layout import SequenceLayout
from stage2_prior.prior import Prior
from stage2_prior.sampling_settings import Sampling, temperature_text
from stage2_prior.settings import filled
from vq_prior.core.errors import NumericError, UsageError
from vq_prior.core.processes.threads import using_threads
from vq_prior.core.training.randomness import MAX_SEED, sample_uniforms

PRECISIONS = ("fp32", "bf16")


def check_sampling(layout: SequenceLayout, *, conditioned: bool = False, **settings: Any) -> None:
    """Check sampling settings, by the names of `Sampling`, against a prior's layout.

    Args:
        layout: Of the prior.
        conditioned: Whether the prior has conditions beside the class.
        settings: By name.

    Raises:
        UsageError: Naming the setting, what was given and what is allowed.
    """
    s = Sampling(**settings).filled()
    guidance_scale, num_levels = filled(s.guidance_scale), len(layout.levels)
    numbers = s.temperature if isinstance(s.temperature, (tuple, list)) else (s.temperature,)
    if not numbers or not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in numbers):
        raise UsageError(f"temperature must be a number, or a tuple of one for each level, got {s.temperature!r}")
    largest = max(layout.level_sizes)
    temperatures = s.temperatures(num_levels)
    if len(temperatures) != num_levels:
        count = "1" if num_levels == 1 else f"1 or {num_levels}"
        got = temperature_text(temperatures)
        raise UsageError(f"temperature must be {count} number(s), one a level of codes, got {got}")
    if not all(math.isfinite(each) and each > 0 for each in temperatures):
        raise UsageError(f"temperature must be positive and finite, got {s.temperature}; 1 samples what was learnt")
    if s.top_k is not None and not 1 <= s.top_k <= largest:
        raise UsageError(
            f"top_k must be between 1 and {largest} (this prior's codebook size), got {s.top_k}; "
            "lower it or leave it out"
        )
    if s.top_p is not None and not 0 < s.top_p <= 1:
        raise UsageError(f"top_p must be above 0 and at most 1, got {s.top_p}; leave it out to keep every code")
    if s.min_p is not None and not 0 <= s.min_p < 1:
        raise UsageError(f"min_p must be at least 0 and below 1, got {s.min_p}; leave it out to keep every code")
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise UsageError(f"guidance_scale must be at least 0 and finite, got {guidance_scale}; 1 is off")
    if guidance_scale != 1 and not layout.num_classes and not conditioned:
        raise UsageError(f"guidance_scale must be 1 for a prior without classes, got {guidance_scale}; leave it out")
    if s.guidance_power is not None and not (math.isfinite(s.guidance_power) and s.guidance_power > 0):
        raise UsageError(f"guidance_power must be positive and finite, got {s.guidance_power}; leave it out for none")
    if s.precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {s.precision!r}")


@torch.inference_mode()
def sample_tokens(
    prior: Prior,
    labels: Tensor | Conditioned,
    *,
    seed: int,
    indices: Sequence[int],
    given: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """Return token sequences drawn from the prior, [B, T] int64.

    Row b is sample `indices[b]`: one uniform number per position, a function of
    (seed, index, position), turned into a token by the inverse CDF of the filtered
    distribution. What a row becomes does not depend on the other rows or their number.

    Args:
        prior: A trained prior in eval mode.
        labels: Class of each sample, [B] int64, `prior.layout.null_label` for unconditional; or all its conditions.
        seed: Seed of the whole set, in [0, 2**63).
        indices: B sample indices.
        given: [B, T] int64: tokens that are taken as they are, and -1 where one is drawn; the uniform numbers of given
            tokens stay unused. A token is drawn in the light of those before it in the sequence, given or drawn.
        settings: Those of `Sampling`, by name; temperature and guidance scale are 1 where they are left out.
            Guidance is classifier-free (Ho and Salimans 2022, eq. 6, as l_null + scale * (l_label - l_null)); a
            scale of 1 costs no second pass.

    Raises:
        UsageError: If a setting is out of range, rows do not fit each other, an illegal id is given, or a level
            that this prior does not draw is not.
        NumericError: If the model gives logits that are not finite.
    """
    layout = prior.layout
    sampling = Sampling(**settings).filled()
    conditioned, device = Conditioned.of(labels), Conditioned.of(labels).labels.device
    check_sampling(layout, conditioned=prior.num_vectors > 0, **sampling.words())
    _check_rows(layout, conditioned.labels, seed, indices)
    _check_guidance(prior, filled(sampling.guidance_scale))
    taken = checked_given(layout, given, len(indices))
    decoder = prior.decoder(sampling.precision)
    B, passes = len(indices), 1 if sampling.guidance_scale == 1 else 2
    rows = rows_of_calls(decoder, B, passes)
    pieces = [torch.empty((0, layout.num_tokens), dtype=torch.int64)]
    uniforms = torch.from_numpy(sample_uniforms(seed, np.asarray(indices, dtype=np.int64), layout.num_tokens))
    for first in range(0, B, rows):
        here = slice(first, min(first + rows, B))
        prompt, draws, forced = (_padded(part[here], rows) for part in (conditioned.labels.cpu(), uniforms, taken))
        prompts = [layout.prompt(prompt), torch.full_like(prompt, layout.null_token)][:passes]
        inputs = [part.to(decoder.device) for part in (torch.cat(prompts), draws, forced)]
        vectors = [prior.prompt_vectors(each[here]) for each in (conditioned, conditioned.null(layout))[:passes]]
        if prior.num_vectors:
            inputs.append(torch.cat([_padded(part, rows) for part in vectors if part is not None]))
        scales = guidance_at(layout.num_tokens, **sampling.guidance)
        temperatures = [sampling.temperatures(len(layout.levels))[level] for level in layout.level_of_each]
        how = (scales, temperatures, sampling.filters)
        pieces.append(_draw(decoder, here.stop - first, layout, inputs, *how).cpu())
    return torch.cat(pieces).to(device)


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


def checked_given(layout: SequenceLayout, given: Tensor | None, num_samples: int) -> Tensor:
    """Return what is given on the host, [B, T] int64; -1 throughout if nothing is.

    Raises:
        UsageError: If it has another shape or type, holds an id that is not legal at its position, or leaves a level
            open that this prior does not draw.
    """
    if given is None:
        given = torch.full((num_samples, layout.num_tokens), -1, dtype=torch.int64)
    if tuple(given.shape) != (num_samples, layout.num_tokens) or given.dtype != torch.int64:
        raise UsageError(
            f"given must be [{num_samples}, {layout.num_tokens}] int64 tokens, -1 where one is drawn, "
            f"got {list(given.shape)} {str(given.dtype).removeprefix('torch.')}"
        )
    for number, level in enumerate(layout.levels_at()):
        part = given[:, level.positions]
        if number in layout.given_levels and bool((part == -1).any()):
            raise UsageError(f"this prior does not draw level {number}; give all of its codes")
        wrong = part[(part != -1) & ((part < level.low) | (part >= level.high))]
        if wrong.numel():
            raise UsageError(
                f"given must hold -1 or ids in [{level.low}, {level.high}) for codes.{number}, got {int(wrong[0])}"
            )
    return given.cpu()


def given_from_prefix(layout: SequenceLayout, prefix: Tensor, num_samples: int) -> Tensor:
    """Return [B, T] that give the first P tokens of each sample, [B, P], and leave the others to be drawn.

    Raises:
        UsageError: If it has another number of rows, or more tokens than a sequence.
    """
    if prefix.ndim != 2 or prefix.shape[0] != num_samples or prefix.shape[1] > layout.num_tokens:
        raise UsageError(
            f"prefix must be [{num_samples}, at most {layout.num_tokens}] tokens, got {list(prefix.shape)}"
        )
    given = torch.full((num_samples, layout.num_tokens), -1, dtype=torch.int64)
    given[:, : prefix.shape[1]] = prefix.cpu()
    return given


def _draw(
    decoder: Decoder,
    num_samples: int,
    layout: SequenceLayout,
    inputs: Sequence[Tensor],
    guidance: Sequence[float],
    temperatures: Sequence[float],
    filters: dict[str, Any],
) -> Tensor:
    """Return tokens [num_samples, T].

    Args:
        decoder: The model.
        num_samples: Those of the R rows that are wanted; the others fill up the call.
        layout: Which ids are legal where.
        inputs: Prompts [R], or [2 R] with the null rows behind; uniform numbers [R, T]; given tokens or -1 [R, T];
            and, for a prior with conditions, what stands in the prompt behind the class, as many rows of [P, D].
        guidance: Scale at each position.
        temperatures: Of each position.
        filters: What else `filtered_probabilities` takes.
    """
    prompts, uniforms, forced, *vectors = inputs
    R, T = uniforms.shape
    passes = prompts.shape[0] // R
    with using_threads(decoder.threads):
        cache = decoder.new_cache(attended_rows(decoder, num_samples, R, passes))
    tokens = torch.empty((R, T), dtype=torch.int64, device=prompts.device)
    finite = torch.ones((), dtype=torch.bool, device=prompts.device)
    current, first = prompts, 0
    for behind in vectors[0].unbind(1) if vectors else ():
        decoder.step(current, first, cache, 0, 1)  # kept in the cache; what it says of the next place is not asked
        current, first = behind.contiguous(), first + 1
    is_given = (forced >= 0).cpu()
    some, all_given = is_given.any(0).tolist(), is_given.all(0).tolist()
    choice = thread_choice(decoder, len(prompts), cache.rows)
    with using_threads():
        for position, (low, high) in enumerate(layout.legal_ids):
            with choice.unit() if choice else nullcontext():
                logits = decoder.step(current, first + position, cache, low, high)
                if passes == 2:
                    null = logits[R:]
                    logits = null + guidance[position] * (logits[:R] - null)
                finite &= logits.sum().isfinite()  # which takes less time than to look at each
                if all_given[position]:
                    drawn = forced[:, position]
                else:
                    weights = filtered_probabilities(logits, temperature=temperatures[position], **filters)
                    # What a row that is not finite gives is refused below.
                    drawn = inverse_cdf(weights, uniforms[:, position]).clamp_(max=high - low - 1) + low
                    if some[position]:
                        drawn = torch.where(forced[:, position] >= 0, forced[:, position], drawn)
                tokens[:, position] = drawn
                current = drawn.repeat(passes) if passes > 1 else drawn
    decoder.threads = choice.number if choice else decoder.threads
    if not bool(finite):
        raise NumericError("the prior gives logits that are not finite; its weights or the guidance scale are broken")
    return tokens[:num_samples]
