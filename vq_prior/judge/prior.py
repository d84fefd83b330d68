"""Examination of a prior, of what it draws, and of the labels it learns from.

Every rule is a threshold on something measured; the thresholds stand here, above what uses them.

Letters: n rows, T tokens of a sequence, C classes.
"""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage2_prior.baselines import Baselines, measure_baselines
from stage2_prior.sequences import Sequences
from vq_prior.core.errors import ArtifactError
from vq_prior.core.training.randomness import keyed_generator
from vq_prior.judge.codec import REPEATED, Codes, joined
from vq_prior.judge.finding import Examined, Finding

if TYPE_CHECKING:
    from stage2_prior.prior import CausalPrior
    from vq_prior.model.pipeline import VQPriorPipeline

DEVIATIONS = 3.0  # standard errors beyond which a difference is no chance
MOST_NAMED = 10  # classes
FEW_ROWS = 50  # of which nothing is said about labels
NO_BETTER = 0.01  # nats per token
MISPLACED = 0.5  # nats per token above what the prior's own record says, or above uniform
LEARNT_BY_HEART = 0.5  # of what held-out rows gain over the unigram, that training rows gain more
LIKELIEST = 0.02  # of the rows
NEAR = 0.05  # of the positions in which a near copy may differ
COPIES = 0.1  # of the samples
ROWS_AT_ONCE = 256
MOST_LOGITS, MOST_CELLS = 1 << 26, 50_000_000


def examine_labels(train: Codes, labels: NDArray[np.int64], names: Sequence[str]) -> Examined:
    """Return how well codes tell the class: naive Bayes, fitted to nine tenths of the rows, asked of the others.

    Classes without a single row are told, too, by name. Where the table of every position's codes would be too large,
    the codes of an image count as one bag.
    """
    num_classes = len(names)
    tokens = joined(train).astype(np.int64)
    size, T = int(tokens.max()) + 1, tokens.shape[1]
    if num_classes * T * size <= MOST_CELLS:
        tokens, size = tokens + np.arange(T) * size, size * T
    test = np.arange(len(tokens)) % 10 == 9
    table = np.ones((num_classes, size))
    for label in range(num_classes):
        table[label] += np.bincount(tokens[~test & (labels == label)].ravel(), minlength=size)
    log_odds = np.log(table / table.sum(axis=1, keepdims=True))
    prior = np.log(np.bincount(labels[~test], minlength=num_classes) + 1.0)
    score = np.stack([log_odds[label][tokens[test]].sum(axis=1) + prior[label] for label in range(num_classes)])
    truth, count = labels[test], int(test.sum())
    right = float((score.argmax(axis=0) == truth).mean()) if count else math.nan
    majority = float(np.bincount(truth, minlength=num_classes).max() / count) if count else math.nan
    chance = math.sqrt(max(majority * (1 - majority), 1e-9) / max(1, count))
    result = Examined({"accuracy": right, "commonest_class": majority, "rows": count})
    empty = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if len(empty):
        listed = ", ".join(names[label] for label in empty[:MOST_NAMED]) + (", ..." if len(empty) > MOST_NAMED else "")
        remedy = "give them images, or leave them out of the data's label names: nothing is learnt for them"
        result.findings.append(Finding("classes without images", f"{len(empty)} of {num_classes}: {listed}", remedy))
    if count >= FEW_ROWS and num_classes > 1 and right < majority + DEVIATIONS * chance:
        result.findings.append(
            Finding(
                "labels shuffled",
                f"the codes tell the class in {right:.1%} of {count} rows, the commonest class alone is {majority:.1%}",
                "check that labels belong to their images (folder names, --label-column), or train without labels",
            )
        )
    return result


def examine_prior(
    prior: "CausalPrior",
    train: Sequences,
    held_out: Sequences,
    recorded: float | None,
    *,
    belongs: bool,
    labels_tell: bool,
) -> Examined:
    """Return how likely a prior finds training and held-out rows, compared with baselines that need no network.

    Args:
        prior: In place.
        train: Rows it was trained on, or some.
        held_out: Rows it was not trained on.
        recorded: Held-out nats per token that its training measured, if that is known.
        belongs: Whether the rows are known to be of the codec that the prior was trained with.
        labels_tell: Whether the codes were found to tell the classes.
    """
    result, baselines = Examined(), measure_baselines(train, held_out)
    some = np.arange(min(len(train), 4 * ROWS_AT_ONCE)) * len(train) // min(len(train), 4 * ROWS_AT_ONCE)
    unseen = np.arange(min(len(held_out), 8 * ROWS_AT_ONCE)) * len(held_out) // min(len(held_out), 8 * ROWS_AT_ONCE)
    tokens, labels = held_out.batch(unseen)
    nats = _nats(prior, tokens, labels)
    nats_of_seen = _nats(prior, *train.batch(some))
    seen, mean = float(nats_of_seen.mean()), float(nats.mean())
    # Where a part of the rows was learnt by heart, the likeliest of those seen are far likelier than any unseen row.
    likeliest, likeliest_unseen = (float(part.quantile(LIKELIEST)) for part in (nats_of_seen, nats))
    by_heart = likeliest < likeliest_unseen / 2
    result.measured = {
        "held_out_nats": mean,
        "train_nats": seen,
        "held_out_nats_of_the_likeliest": likeliest_unseen,
        "train_nats_of_the_likeliest": likeliest,
        "recorded_nats": recorded,
        "uniform": baselines.uniform,
        "unigram": baselines.unigram,
        "previous_token": baselines.previous_token,
    }
    result.findings += _worth(mean, seen, recorded, baselines, by_heart=by_heart, belongs=belongs)
    if not result.findings:
        result.findings += _label_use(prior, result, tokens, labels, nats, labels_tell=labels_tell)
    return result


def _nats(prior: "CausalPrior", tokens: Tensor, labels: Tensor) -> Tensor:
    """Return nats of each row, [n] float64, the mean over its tokens."""
    packed, device, drawn = prior.packed(), prior.device, prior.layout.drawn_positions
    rows = max(1, min(ROWS_AT_ONCE, MOST_LOGITS // (prior.layout.num_tokens * prior.layout.vocab_size)))
    parts = [
        -packed.log_probs(t.to(device), y.to(device))[:, drawn].double().mean(dim=1).cpu()
        for t, y in zip(tokens.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _worth(
    mean: float, seen: float, recorded: float | None, baselines: Baselines, *, by_heart: bool, belongs: bool
) -> list[Finding]:
    """Return what is wrong with a prior of `mean` nats on held-out rows and `seen` nats on training rows, if anything.

    Strange codes cost more than chance, on every row; what was learnt by heart costs little and only the rest much.
    """
    unigram, fatal = baselines.unigram, mean >= baselines.unigram - NO_BETTER
    figures = f"{seen:.3f} nats per token on training rows, {mean:.3f} on held-out rows (unigram {unigram:.3f})"
    expected = math.inf if recorded is None else recorded
    strange = seen > min(baselines.uniform, expected) + MISPLACED
    if mean - seen > LEARNT_BY_HEART * max(0.0, unigram - mean) and seen < unigram - NO_BETTER:
        by_heart = True
    if strange and not belongs and not by_heart:
        was = "" if recorded is None else f", its training measured {recorded:.3f}"
        remedy = "these are not the codes it was trained on: use its own codec and code store"
        return [Finding("wrong codec", f"{figures}, uniform {baselines.uniform:.3f}{was}", remedy, fatal)]
    if by_heart or (strange and fatal):
        remedy = "train fewer --steps, a smaller prior (--size), more data or views; raise --token-dropout"
        return [Finding("prior overfitted", figures, remedy, fatal)]
    if fatal:
        remedy = "train it longer (train-prior --steps), and look at the held-out nats of its log"
        return [Finding("prior not trained", figures, remedy, fatal=True)]
    if mean >= baselines.previous_token - NO_BETTER:
        text = f"{figures}; knowing the token before alone gives {baselines.previous_token:.3f}"
        return [Finding("prior hardly trained", text, "train it longer (train-prior --steps)")]
    return []


def _label_use(
    prior: "CausalPrior", result: Examined, tokens: Tensor, labels: Tensor, nats: Tensor, *, labels_tell: bool
) -> list[Finding]:
    """Return whether the classes help the prior: rows with another class of the same set must be less likely."""
    C = prior.layout.num_classes
    if C < 2:
        return []
    others = torch.from_numpy(keyed_generator(0, 0, "other labels").integers(1, C, size=len(labels)))
    gains = (_nats(prior, tokens, (labels + others) % C) - nats) * prior.layout.num_drawn
    gain, error = float(gains.mean()), float(gains.std() / math.sqrt(len(gains))) if len(gains) > 1 else math.inf
    result.measured["nats_an_image_that_its_class_saves"] = gain
    if gain > DEVIATIONS * error or not labels_tell or len(gains) < FEW_ROWS:
        return []
    return [
        Finding(
            "labels shuffled",
            f"its class saves {gain:.2f} nats an image (standard error {error:.2f}) though the codes tell the class",
            "train on labels that belong to their images, in the order of the model's label names",
        )
    ]


def examine_samples(
    pipeline: "VQPriorPipeline",
    train: Codes,
    held_out: Codes,
    values: tuple[Tensor, Tensor] | None,
    *,
    num_images: int,
) -> Examined:
    """Return how near samples of the model's own settings come to the training rows, against held-out rows.

    Distances are shares of the positions that differ from the nearest training row; of pixels (of pictures of the
    values, where these are none), root mean squared differences on the 0-255 scale.

    Args:
        pipeline: The model.
        train: Codes of training rows, [n, *grid] a level.
        held_out: Of held-out rows.
        values: Training and held-out values [n, C, *shape], if they are at hand.
        num_images: Samples to draw.
    """
    layout, given = pipeline.prior.layout, None
    if layout.given_levels:  # those of held-out rows, again and again
        some = np.arange(num_images) % len(held_out[0])
        grids = {number: torch.from_numpy(held_out[number][some].astype(np.int64)) for number in layout.given_levels}
        given = layout.given_of(grids)
    started = time.perf_counter()
    drawn = pipeline(num_images, given=given, output_type="pt")
    seconds = time.perf_counter() - started
    samples = joined(tuple(level.cpu().numpy() for level in drawn.codes)).astype(np.int64)
    rows, unseen = joined(train).astype(np.int64), joined(held_out).astype(np.int64)[:num_images]
    distances, nearest = _nearest(samples, rows)
    usual, _ = _nearest(unseen, rows)
    result = Examined()
    copies, usual_copies = (float((d <= NEAR).mean()) for d in (distances, usual))
    different, originals = (len(np.unique(x, axis=0)) / len(x) for x in (samples, rows))
    result.measured = {
        "num_images": num_images,
        **({"given_levels": list(layout.given_levels)} if given is not None else {}),
        "images_a_second": num_images / seconds,
        "distinct": different,
        "near_copies_of_training_rows": copies,
        "near_copies_among_held_out_rows": usual_copies,
        "median_distance": float(np.median(distances)),
        "median_distance_of_held_out_rows": float(np.median(usual)),
        "nearest_training_row": [int(row) for row in nearest],
        "distance": [round(float(d), 4) for d in distances],
    }
    if values is not None:
        pictures = [pipeline.codec.modality.show.pictures(each) for each in values]
        pixels, places = _nearest_pixels(pipeline.codec.modality.show.pictures(drawn.drawn), pictures[0])
        result.measured["median_pixel_distance"] = float(np.median(pixels))
        result.measured["median_pixel_distance_of_held_out"] = float(
            np.median(_nearest_pixels(pictures[1], pictures[0])[0])
        )
        result.measured["nearest_training_picture"] = [int(row) for row in places]
        result.measured["pixel_distance"] = [round(float(d), 3) for d in pixels]
    result.findings = _sample_findings(copies, usual_copies, different, num_images, repeated=originals < REPEATED)
    return result


def _sample_findings(
    copies: float, usual_copies: float, different: float, num_images: int, *, repeated: bool
) -> list[Finding]:
    findings = []
    if copies > COPIES and (copies > 2 * usual_copies or repeated):  # in a set of copies, held-out rows are copies, too
        findings.append(
            Finding(
                "memorised training set",
                f"{copies:.0%} of the samples are near copies of training rows, {usual_copies:.0%} of held-out rows",
                "more data or views, fewer --steps, a smaller prior, a higher --temperature",
            )
        )
    if different < 0.5 and num_images >= 32:
        findings.append(
            Finding(
                "samples repeat each other",
                f"only {different:.0%} of {num_images} samples are different",
                "raise --temperature, lower --guidance-scale, leave --top-k and --top-p out",
            )
        )
    return findings


def _nearest(queries: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the share of positions in which each query [m, T] differs from the nearest row of [n, T], and which."""
    shares, places = [], []
    for query in queries:
        same = (rows == query).sum(axis=1)
        places.append(int(same.argmax()))
        shares.append(1 - float(same.max()) / rows.shape[1])
    return np.array(shares), np.array(places, dtype=np.int64)


def _nearest_pixels(
    queries: NDArray[np.uint8], pictures: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the root mean squared difference of each query to the nearest picture, and which."""
    q, p = (torch.from_numpy(np.ascontiguousarray(x)).flatten(1).double() for x in (queries, pictures))
    squares = (q * q).sum(dim=1)[:, None] - 2 * q @ p.T + (p * p).sum(dim=1)
    nearest, places = squares.min(dim=1)
    return (nearest.clamp_min(0) / q.shape[1]).sqrt().numpy(), places.numpy()


def sequences_of(prior: "CausalPrior", codes: Codes, labels: NDArray[np.int64] | None) -> Sequences:
    """Return codes as the rows of a prior.

    Raises:
        ArtifactError: If the prior has no token for one of the codes, or needs classes and the rows have none.
    """
    layout = prior.layout
    if layout.num_classes and labels is None and not prior.unconditional:
        raise ArtifactError("the prior has classes, these codes have none")
    classes = np.full(len(codes[0]), layout.null_label, dtype=np.int64)
    if layout.num_classes and labels is not None:
        classes = labels
    rows = Sequences(layout, codes, classes)
    rows.batch(slice(None))
    return rows
