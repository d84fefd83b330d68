"""Score class-conditional samples against the data a model was trained on.

    python scripts/benchmarks/score_samples.py --model runs/quickstart/model --data digits --num-images 500

Prints JSON: the share of samples that a support-vector classifier fitted on the
real images names rightly, in all and by class; the share of distinct samples; and the share of
samples closer to a training image than the closest 1% of training images lie to
each other (mean squared difference per pixel on the 0-16 scale). Needs the extra `quickstart`.
"""

import argparse
import json
import time

import numpy as np
from sklearn.svm import SVC

from stage1_vqvae.data.loading import load_rows
from stage1_vqvae.data.sources import open_data
from stage1_vqvae.evaluate import reconstructed
from stage1_vqvae.modalities.pictures.values import to_pixels
from vq_prior import VQPriorPipeline

MAX_FITTED = 6000


def flat(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 pictures as rows of numbers from 0 to 16."""
    return pixels.reshape(len(pixels), -1) * (16 / 255)


def nearest(queries: np.ndarray, keys: np.ndarray, *, skip_self: bool) -> np.ndarray:
    """Return the mean squared difference of each query [n, D] to its nearest key [m, D]."""
    distances = (queries**2).sum(1)[:, None] - 2 * queries @ keys.T + (keys**2).sum(1)[None]
    if skip_self:
        np.fill_diagonal(distances, np.inf)
    return np.maximum(distances.min(1), 0) / queries.shape[1]


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("temperature", "guidance-scale", "top-p"):
        parser.add_argument(f"--{name}", type=float)
    arguments = parser.parse_args()
    pipeline = VQPriorPipeline.from_pretrained(arguments.model)
    data, form = open_data(arguments.data), (pipeline.codec.modality, pipeline.codec.transform)
    train = flat(load_rows(data.train, *form).stored(range(len(data.train))))
    held_out = load_rows(data.validation, *form)
    held = flat(held_out.stored(range(len(held_out))))
    some = slice(None, None, -(-len(train) // MAX_FITTED))
    classifier = SVC(gamma="scale", C=10).fit(train[some], data.train.labels[some])
    started = time.monotonic()
    drawn = pipeline(
        arguments.num_images,
        seed=arguments.seed,
        output_type="np",
        temperature=arguments.temperature,
        guidance_scale=arguments.guidance_scale,
        top_p=arguments.top_p,
    )
    seconds = time.monotonic() - started
    samples = flat(drawn.images)
    named, labels = classifier.predict(samples), np.array(drawn.labels)
    closest = np.quantile(nearest(train, train, skip_self=True), 0.01)
    result = {
        "accuracy": float((named == labels).mean()),
        "accuracy_by_class": [round(float((named == labels)[labels == c].mean()), 3) for c in np.unique(labels)],
        "classifier_on_held_out": float((classifier.predict(held) == data.validation.labels).mean()),
        "classifier_on_reconstructions": float(
            (
                classifier.predict(flat(to_pixels(reconstructed(pipeline.codec, held_out.batch(range(len(held_out)))))))
                == data.validation.labels
            ).mean()
        ),
        "distinct": len(np.unique(drawn.images.reshape(len(drawn.images), -1), axis=0)) / len(samples),
        "closest_1_percent_of_training": float(closest),
        "closer_than_that": float((nearest(samples, train, skip_self=False) < closest).mean()),
        "images_per_second": len(samples) / seconds,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
