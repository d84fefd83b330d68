"""`vq-prior evaluate`: what a codec loses, what a prior gives to held-out codes, and how real the samples are.

Reconstructions and samples are compared with the same reference, evenly spread training images, in the features of
the same network: the share of the distance that the codec makes is then told from the prior's. The result holds all
that its numbers depend on; on one machine two runs agree to the digit.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from stage1_vqvae.data.loading import MAX_CACHE_BYTES
from stage1_vqvae.modalities import measured_of
from stage1_vqvae.modalities.pictures.classifier import (
    MAX_FITTED,
    STEPS,
    FittedNetwork,
    fit_network,
    gather_small,
)
from stage2_prior.sampling_settings import Sampling
from vq_prior import __version__
from vq_prior.core.config import pretty_json
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.places import make_folder, true_place
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.labels import one_form
from vq_prior.core.training.frechet import frechet_distance
from vq_prior.core.training.randomness import MAX_SEED
from vq_prior.core.training.runs import by_number, flatten
from vq_prior.judge.evaluator import NAMES, Evaluator, NamedFeatures
from vq_prior.judge.features import Overlap, inception_score, kernel_distance, overlap
from vq_prior.settings import Evaluate

if TYPE_CHECKING:
    from stage1_vqvae.data.loading import LoadedRows
    from stage1_vqvae.data.rows import DataRows
    from stage1_vqvae.data.sources import Data
    from stage2_prior.prior import CausalPrior
    from vq_prior.core.modality import Modality
    from vq_prior.core.processes.runtime import Runtime
    from vq_prior.core.spec import Codec
    from vq_prior.model.pipeline import VQPriorPipeline

ROWS_AT_ONCE = 256
AT_ONCE = 160  # samples drawn at once: more a second than 64 on two cores, and the same samples
FEWEST, MOST_BYTES = 6, 512 << 20
PARTS = ("codec", "prior", "reconstructions", "held_out", "samples", "error_budget")


def evaluate(settings: Evaluate) -> dict[str, Any]:
    """Measure, write the numbers to OUT and return them.

    Raises:
        UsageError: If a setting is out of range, or not exactly one of codec and model is given.
        ArtifactError: If an input is missing or damaged.
        EnvironmentFault: If weights that were asked for cannot be had.
    """
    _check(settings)
    from stage1_vqvae.codecs import open_codec
    from stage1_vqvae.data.sources import open_data_of
    from vq_prior.core.processes.runtime import start_runtime
    from vq_prior.model.pipeline import VQPriorPipeline
    from vq_prior.model.request import check_request, resolve_sampling

    pipeline, sampling = None, Sampling()
    if settings.codec is not None:
        codec = open_codec(settings.codec)
    else:
        assert settings.model is not None
        pipeline = VQPriorPipeline.from_pretrained(settings.model)
        codec = pipeline.codec
        sampling = resolve_sampling(pipeline.index, Sampling.of(settings))
        count, batch = settings.num_images, settings.batch_size
        check_request(pipeline.index, sampling, num_images=count, seed=settings.seed, batch_size=batch)
    runtime = start_runtime("fp32")
    print(runtime.describe(), flush=True)
    for note in codec.notes:
        print(note)
    data = open_data_of(settings, say=print, modality=codec.modality, form=codec.transform)
    if pipeline is not None:
        _require_same_classes(pipeline.prior, data)
        pipeline.to(runtime.device)
    evaluator = None if settings.evaluator == "own" else _named_evaluator(settings.evaluator, runtime)
    codec.to(runtime.device)
    result = _measure(settings, codec, pipeline, data, runtime, evaluator, sampling)
    make_folder(true_place(settings.out).parent)
    write_atomic(settings.out, pretty_json(result))
    _tell(result)
    print(f"wrote {settings.out}")
    return result


def _check(settings: Evaluate) -> None:
    if (settings.codec is None) == (settings.model is None):
        raise UsageError("evaluate needs either --codec or --model")
    if settings.out.is_dir():
        raise UsageError(f"--out must be a file to write, {settings.out} is a folder")
    if not 1 <= settings.num_images <= 1_000_000:
        raise UsageError(f"num_images must be between 1 and 1000000, got {settings.num_images}")
    if not 0 <= settings.seed <= MAX_SEED:
        raise UsageError(f"seed must be between 0 and {MAX_SEED}, got {settings.seed}")
    if settings.lpips != "none":
        from stage1_vqvae.modalities.pictures.quality import perceptual_distance

        perceptual_distance(settings.lpips)


def _named_evaluator(name: str, runtime: "Runtime") -> Evaluator:
    from vq_prior.model.inputs import fetch_once

    return NamedFeatures(fetch_once(NAMES.get(name, name)), name, runtime.device)


def _require_same_classes(prior: "CausalPrior", data: "Data") -> None:
    if prior.layout.num_classes and [*map(one_form, data.label_names)] != [*map(one_form, prior.label_names)]:
        raise ArtifactError(
            f"the data has the classes {', '.join(data.label_names) or 'none'}, "
            f"the prior {', '.join(prior.label_names)}; evaluate on data of the same classes"
        )


@dataclass
class _Seen:
    """What is kept of a set of images as its batches go by.

    Attributes:
        network: The embedded network.
        evaluator: What gives the features.
        modality: What the values are.
        judged: Whether class probabilities are wanted.
        kept: Whether the images themselves are wanted, small.
    """

    network: FittedNetwork
    evaluator: Evaluator
    modality: "Modality"
    judged: bool = False
    kept: bool = False
    features: list[torch.Tensor] = field(default_factory=list)
    probabilities: list[torch.Tensor] = field(default_factory=list)
    small: list[torch.Tensor] = field(default_factory=list)
    digest: Any = field(default_factory=sha256)
    sums: dict[str, float] = field(default_factory=dict)

    def take(self, batches: Iterable[Tensor]) -> "_Seen":
        """See the pictures of every batch of values [n, C, *shape] and return self."""
        statistics = getattr(self.modality.quality, "statistics", {})  # a kind may have none
        for values in batches:
            for name, statistic in statistics.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(statistic(values).double().sum())
            pixels = self.modality.show.pictures(values)
            self.digest.update(np.ascontiguousarray(pixels).tobytes())
            self.features.append(self.evaluator.features(pixels))
            if self.judged:
                self.probabilities.append(self.network.probabilities(pixels))
            if self.kept:
                self.small.append(gather_small([pixels]))
        return self

    def means(self) -> dict[str, float]:
        """Return the mean of each number that the kind of data has for a value by itself."""
        return {name: total / len(self) for name, total in self.sums.items()}

    def __len__(self) -> int:
        return sum(map(len, self.features))

    def against(self, reference: "_Seen", *, manifolds: bool = False) -> dict[str, Any]:
        """Return the distances of this set from a reference, null where a set is too small for any."""
        if min(len(self), len(reference)) < FEWEST:
            return dict.fromkeys(("fid", "kid", *(Overlap._fields if manifolds else ())))
        samples, real = torch.cat(self.features), torch.cat(reference.features)
        near = overlap(samples, real)._asdict() if manifolds else {}
        return {"fid": frechet_distance(samples, real), "kid": kernel_distance(samples, real), **near}


def _measure(
    settings: Evaluate,
    codec: "Codec",
    pipeline: "VQPriorPipeline | None",
    data: "Data",
    runtime: "Runtime",
    named: Evaluator | None,
    sampling: Sampling,
) -> dict[str, Any]:
    from stage1_vqvae.evaluate import evaluate_codec, reconstructed

    held_out, kind = _loaded(settings, codec, data.validation), codec.modality
    result: dict[str, Any] = {
        "format_version": 1,
        "vq_prior": __version__,
        "versions": {name: version(name) for name in ("torch", "numpy", "torchmetrics", "pillow")},
        "data_id": data.data_id,
        "codec_id": codec.codec_id,
        "codec": evaluate_codec(codec, held_out, device=runtime.device),
    }
    result["codec"] |= _of_set(settings, codec, held_out, runtime)
    if pipeline is not None:
        result["prior"] = _evaluate_prior(pipeline.prior, codec, data, held_out)
    network = _fit(settings, codec, data, held_out)
    evaluator = named or network
    rows = _spread(len(data.train), settings.num_images)
    real = _loaded(settings, codec, data.train.subset(rows), max_bytes=MOST_BYTES)
    reference = _Seen(network, evaluator, kind).take(_batches(real))
    result["reference"] = {"split": "train", "num_images": len(real), "pixels_sha256": reference.digest.hexdigest()}
    result["reference"] |= reference.means()
    result["evaluator"] = evaluator.describe() | ({"sees": "images over white"} if _has_alpha(codec) else {})
    copies = (reconstructed(codec, v) for v in real.batches(ROWS_AT_ONCE, runtime.device))
    seen = _Seen(network, evaluator, kind).take(copies)
    result["reconstructions"] = seen.against(reference) | seen.means()
    floor = _Seen(network, evaluator, kind).take(_batches(held_out, _spread(len(held_out), settings.num_images)))
    result["held_out"] = {"num_images": len(floor), **floor.against(reference), **floor.means()}
    if pipeline is not None:
        classes = None if data.train.labels is None else data.train.labels[rows]
        samples = _samples(settings, pipeline, classes, real, sampling, reference, data, held_out)
        result["samples"] = samples
        result["error_budget"] = _budget(result)
    return result


def _spread(total: int, wanted: int) -> NDArray[np.int64]:
    """Return `wanted` of so many rows, evenly spread; all of them if there are fewer."""
    count = min(total, wanted)
    return np.arange(count, dtype=np.int64) * total // count


def _loaded(settings: Evaluate, codec: "Codec", rows: "DataRows", max_bytes: int = MAX_CACHE_BYTES) -> "LoadedRows":
    from stage1_vqvae.data.loading import load_rows

    return load_rows(rows, codec.modality, codec.transform, num_workers=settings.num_workers, max_bytes=max_bytes)


def _batches(loaded: "LoadedRows", rows: NDArray[np.int64] | None = None) -> Iterator[Tensor]:
    """Yield the values of rows."""
    numbers = np.arange(len(loaded), dtype=np.int64) if rows is None else rows
    for first in range(0, len(numbers), ROWS_AT_ONCE):
        yield loaded.batch(numbers[first : first + ROWS_AT_ONCE])


def _has_alpha(codec: "Codec") -> bool:
    return "measures_of" in measured_of(codec.transform)


def _fit(settings: Evaluate, codec: "Codec", data: "Data", held_out: "LoadedRows") -> FittedNetwork:
    """Return the embedded network, fitted to the training images and scored on those held out."""
    from stage1_vqvae.data.loading import stored_ahead

    rows, modality = data.train.subset(_spread(len(data.train), MAX_FITTED)), codec.modality
    workers = settings.num_workers
    stored = stored_ahead(rows, modality, codec.transform, ROWS_AT_ONCE, num_workers=workers)
    to_values = modality.values.to_values
    images = gather_small(modality.show.pictures(to_values(torch.from_numpy(batch))) for batch in stored)
    side = images.shape[2]
    print(f"fitting the evaluator to {len(images)} images at {side}x{side}", flush=True)
    with _bar("fit the evaluator", STEPS, "step") as bar:
        classes = len(data.label_names)
        labels = rows.labels if classes > 1 else None
        network = fit_network(images, labels, classes, seed=settings.seed, progress=bar.update)
    unseen = gather_small(map(modality.show.pictures, _batches(held_out)))
    if network.labelled and data.validation.labels is not None:
        network.scores["accuracy"] = network.accuracy(unseen, data.validation.labels)
    else:
        network.scores["accuracy"] = network.turn_accuracy(unseen)
    return network


def _bar(what: str, total: int, unit: str) -> "tqdm[Any]":
    return tqdm(total=total, desc=what, unit=unit, disable=None, file=sys.stderr, leave=False)


def _samples(
    settings: Evaluate,
    pipeline: "VQPriorPipeline",
    classes: NDArray[np.int64] | None,
    real: "LoadedRows",
    sampling: Sampling,
    reference: _Seen,
    data: "Data",
    held_out: "LoadedRows",
) -> dict[str, Any]:
    """Return how the samples compare with the reference; sample i has the class and the given levels of its image i."""
    count, conditional = len(real), pipeline.prior.layout.num_classes > 1 and classes is not None
    names = pipeline.index.label_names
    labels = [names[label] for label in classes] if conditional and classes is not None else None
    batches = pipeline.stream(
        count,
        labels=labels,
        seed=settings.seed,
        batch_size=settings.batch_size or AT_ONCE,
        output_type="pt",
        given=_given(pipeline, real),
        **sampling.words(),
    )

    def drawn() -> Iterator[Tensor]:
        with _bar("draw samples", count, "image") as bar:
            for batch in batches:
                yield batch.drawn
                bar.update(len(batch.drawn))

    network, kind = reference.network, reference.modality
    seen = _Seen(network, reference.evaluator, kind, judged=network.labelled, kept=conditional).take(drawn())
    result: dict[str, Any] = {
        "num_images": count,
        "seed": settings.seed,
        "sampling": sampling.words(),
        "pixels_sha256": seen.digest.hexdigest(),
        **seen.against(reference, manifolds=True),
        **seen.means(),
        "inception_score": inception_score(torch.cat(seen.probabilities)) if network.labelled else None,
        "classification_accuracy": None,
    }
    if conditional and classes is not None and data.validation.labels is not None:
        with _bar("fit a classifier to the samples", STEPS, "step") as bar:
            student = fit_network(
                torch.cat(seen.small), classes, len(data.label_names), seed=settings.seed, progress=bar.update
            )
        unseen = gather_small(map(kind.show.pictures, _batches(held_out)))
        scores = {"fitted_to_samples": student.accuracy(unseen, data.validation.labels)}
        result["classification_accuracy"] = scores | {"fitted_to_images": network.scores["accuracy"]}
    return result


def _given(pipeline: "VQPriorPipeline", real: "LoadedRows") -> torch.Tensor | None:
    """Return the given levels of images, [n, T], -1 where a token is drawn; None if the prior draws every level."""
    layout = pipeline.prior.layout
    if not layout.given_levels:
        return None
    parts = []
    for values in real.batches(ROWS_AT_ONCE, pipeline.device):
        codes = pipeline.codec.encode(values)
        parts.append(layout.given_of({number: codes[number] for number in layout.given_levels}))
    return torch.cat(parts)


def _budget(result: dict[str, Any]) -> dict[str, Any]:
    """Return how much of the samples' distance the codec alone makes, and what is left for the prior."""
    rfid, fid = result["reconstructions"]["fid"], result["samples"]["fid"]
    rest = None if fid is None or rfid is None else fid - rfid
    return {"rfid": rfid, "fid": fid, "fid_less_rfid": rest}


def _of_set(settings: Evaluate, codec: "Codec", held_out: "LoadedRows", runtime: "Runtime") -> dict[str, float | None]:
    """Return the measures of reconstructions that need a whole set or a network: of pictures MS-SSIM and LPIPS."""

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for values in held_out.batches(ROWS_AT_ONCE, runtime.device):
            yield values, codec.decode(codec.encode(values))

    return codec.modality.quality.of_set(pairs, codec.spec.shape, network=settings.lpips)


def _evaluate_prior(prior: "CausalPrior", codec: "Codec", data: "Data", held_out: "LoadedRows") -> dict[str, Any]:
    """Return held-out nats per token and code bits per dimension under the prior."""
    from stage2_prior.baselines import bits_per_dimension

    prior = prior.packed()
    total, count = 0.0, 0
    for first in range(0, len(held_out), ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, len(held_out)))
        images = held_out.batch(rows, prior.device)
        tokens = prior.layout.to_tokens(codec.encode(images))
        classes = torch.full((len(rows),), prior.layout.null_label)
        if prior.layout.num_classes:
            assert data.validation.labels is not None
            classes = torch.from_numpy(data.validation.labels[rows])
        log_probs = prior.log_probs(tokens, classes.to(prior.device))[:, prior.layout.drawn_positions]
        total, count = total - float(log_probs.double().sum()), count + log_probs.numel()
    bits = bits_per_dimension(total / count, prior.spec, prior.layout.num_drawn)
    return {"nats_per_token": total / count, "bits_per_dimension": bits}


def _tell(result: dict[str, Any]) -> None:
    for part in PARTS:
        for name, value in flatten(by_number(result.get(part, {}))).items():
            print(f"{part} {name} {value}")
