"""Row counts at which a decoder gives each row the same bits whatever the other rows: measured, not believed.

What is measured here spares small calls the padding of the plain way.

Plain twin: one fixed row count for every call, `FIXED_ROWS`.
"""

from functools import partial

import torch
from torch import Tensor

from stage2_prior.decoder import Decoder
from stage2_prior.fast.attention import PLACES, Cache
from stage2_prior.filters import blocks_of, filtered_probabilities
from vq_prior.core.processes.threads import LATELY, ThreadChoice, using_threads

ROW_MULTIPLE = 8
FIXED_ROWS = 64
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
    measured = decoder.row_counts
    # The fixed count is measured first and always: which counts were asked for before decides nothing.
    if not _measure(decoder, FIXED_ROWS, passes, measured):
        return FIXED_ROWS
    return wanted if _measure(decoder, wanted, passes, measured) else FIXED_ROWS


def rows_of_calls(decoder: Decoder, num_samples: int, passes: int) -> int:
    """Return `call_rows`, measured with the number of threads that there are cores for.

    Beside another program that computes, two threads take many times as long as one. What is measured with fewer holds
    for all where these give the same bits at the fixed count, which is looked at here, and at the count itself, at
    which `thread_choice` looks; else it is measured with all.
    """
    most = torch.get_num_threads()
    if decoder.device.type != "cpu" or most == 1 or decoder.row_counts:
        return call_rows(decoder, num_samples, passes)
    few = LATELY.fitting({1, most})
    with using_threads(few):
        rows = call_rows(decoder, num_samples, passes)
    decoder.threads = few
    fixed = FIXED_ROWS * passes
    if few < most and not _threads_agree(decoder, fixed, fixed, most):
        decoder.row_counts.clear()
        decoder.threads = most
        return call_rows(decoder, num_samples, passes)
    return rows


def attended_rows(decoder: Decoder, num_samples: int, rows: int, passes: int) -> int:
    """Return for how many rows of a call attention is computed: the samples that are wanted, without the padding,
    where that was measured to leave every bit as it is; else, and with guidance, all.

    Attention is the only part of a step that grows along the sequence, so that this matters where few samples are
    drawn.
    """
    if passes > 1 or num_samples == rows:
        return passes * rows
    measured = decoder.row_counts
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
    vocabulary = decoder.vocab_size
    generator = torch.Generator().manual_seed(0)
    few, many = decoder.new_cache(reference), decoder.new_cache(rows)
    pick = (torch.arange(rows) % reference).to(decoder.device)
    _fill_alike(few, many, pick)
    if not _attention_is_invariant(decoder, few, many, pick):
        return False
    for position in _some_places(decoder):
        tokens = torch.randint(vocabulary, (reference,), generator=generator).to(decoder.device)
        first = decoder.step(tokens, position, few, 0, vocabulary)
        second = decoder.step(tokens[pick], position, many, 0, vocabulary)
        of_few, of_many = (blocks_of(filtered_probabilities(logits)) for logits in (first, second))
        if not all(torch.equal(a[pick], b) for a, b in zip(of_few, of_many, strict=True)):
            return False
    return True


def thread_choice(decoder: Decoder, rows: int, attended: int) -> ThreadChoice | None:
    """Return how many threads to draw the next tokens with, None where one number is all there is.

    One thread or as many as there are, where a step was measured to give the same bits with both. A draw that begins
    with all that there are looks at that only when fewer are to be tried: on an idle machine, never.

    Args:
        decoder: The model.
        rows: Of a call.
        attended: Rows of its cache.
    """
    most = torch.get_num_threads()
    if decoder.device.type != "cpu" or most == 1:
        return None
    key = (rows, attended, most)
    if key not in decoder.thread_choices:
        first, same_bits = decoder.threads or most, partial(_threads_agree, decoder, rows, attended, most)
        if first == most:
            decoder.thread_choices[key] = ThreadChoice({1, most}, same_bits=same_bits)
        else:
            decoder.thread_choices[key] = ThreadChoice({1, most}, first=first) if same_bits() else None
    return decoder.thread_choices[key]


@torch.inference_mode()
def _threads_agree(decoder: Decoder, rows: int, attended: int, most: int) -> bool:
    """Return whether one thread and `most` give the same bits in one block, at the last place or in the last cell.

    A product of one shape is the same at every place and in every block, and attention is longest at the last. More
    would cost a short draw beside a busy program more than its tokens do.
    """
    decoder = decoder.of_one_block()
    T, vocabulary = decoder.max_length - 1, decoder.vocab_size
    generator = torch.Generator().manual_seed(0)
    some, cache = decoder.new_cache(ROW_MULTIPLE), decoder.new_cache(attended)
    _fill_alike(some, cache, torch.arange(attended) % ROW_MULTIPLE)
    for position in range(T - (decoder.depth.tokens if decoder.depth else 1), T):
        tokens = torch.randint(vocabulary, (rows,), generator=generator)
        drawn_from = []
        for threads in (most, 1):  # each writes the same place anew
            before = cache.cell
            with using_threads(threads):
                logits = decoder.step(tokens, position, cache, 0, vocabulary)
                drawn_from.append(blocks_of(filtered_probabilities(logits)))
            cache.cell = before if threads == most else cache.cell
        if not all(torch.equal(a, b) for a, b in zip(*drawn_from, strict=True)):
            return False
    return True


def _some_places(decoder: Decoder) -> list[int]:
    """Return the first place of a sequence, the second, a middle one and the last; of a head over depth, a cell's."""
    T, cell = decoder.max_length - 1, decoder.depth.tokens if decoder.depth else 1
    return sorted({*range(min(T, decoder.prompt_vectors + max(2, cell))), T // 2, T - 1})


def _fill_alike(few: Cache, many: Cache, pick: Tensor) -> None:
    if few.inner is not None and many.inner is not None:
        _fill_alike(few.inner, many.inner, pick)
    generator = torch.Generator().manual_seed(1)
    few.keys.copy_(torch.randn(few.keys.shape, generator=generator))
    few.values.copy_(torch.randn(few.values.shape, generator=generator))
    many.keys.copy_(few.keys[:, :, pick])
    many.values.copy_(few.values[:, pick])


@torch.inference_mode()
def _attention_is_invariant(decoder: Decoder, few: Cache, many: Cache, pick: Tensor) -> bool:
    shape = (few.rows, decoder.num_heads, decoder.head_dim)
    q = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(decoder.device)
    for position in range(decoder.places):
        k = few.keys[0, position // PLACES, ..., position % PLACES].clone()  # which writing leaves as they are
        v = few.values[0, :, :, position].clone()
        first = decoder.attend(q, k, v, few, 0, position)
        if not torch.equal(first[pick], decoder.attend(q[pick], k[pick], v[pick], many, 0, position)):
            return False
    return True
