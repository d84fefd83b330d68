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

from stage1_vqvae.evaluate import held_out_pixels
from stage1_vqvae.sources import load_pixels, open_data
from vq_prior import VQPriorPipeline


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
    data, held_out = held_out_pixels(pipeline.codec, arguments.data, num_workers=2)
    train = load_pixels(open_data(arguments.data).train, pipeline.codec.transform, num_workers=2)
    x = train.batch(np.arange(len(train))).reshape(len(train), -1) * (16 / 255)
    held = held_out.batch(np.arange(len(held_out))).reshape(len(held_out), -1) * (16 / 255)
    classifier = SVC(gamma="scale", C=10).fit(
        x[:8000] if len(x) <= 8000 else x[:: -(-len(x) // 8000)], data.train.labels[:: max(1, -(-len(x) // 8000))]
    )
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
    samples = drawn.images.reshape(len(drawn.images), -1) * (16 / 255)
    named, labels = classifier.predict(samples), np.array(drawn.labels)
    closest = np.quantile(nearest(x, x, skip_self=True), 0.01)
    result = {
        "accuracy": float((named == labels).mean()),
        "accuracy_by_class": [round(float((named == labels)[labels == c].mean()), 3) for c in np.unique(labels)],
        "classifier_on_held_out": float((classifier.predict(held) == data.validation.labels).mean()),
        "classifier_on_reconstructions": float(
            (classifier.predict(_reconstructed(pipeline, held_out)) == data.validation.labels).mean()
        ),
        "distinct": len(np.unique(drawn.images.reshape(len(drawn.images), -1), axis=0)) / len(samples),
        "closest_1_percent_of_training": float(closest),
        "closer_than_that": float((nearest(samples, x, skip_self=False) < closest).mean()),
        "images_per_second": len(samples) / seconds,
    }
    print(json.dumps(result, indent=2))


def _reconstructed(pipeline: VQPriorPipeline, held_out: object) -> np.ndarray:
    import torch

    from vq_prior.core.media import to_pixels, to_unit_range

    images = to_unit_range(torch.from_numpy(held_out.batch(np.arange(len(held_out)))))
    pixels = to_pixels(pipeline.codec.decode(pipeline.codec.encode(images)))
    return pixels.reshape(len(pixels), -1) * (16 / 255)


if __name__ == "__main__":
    main()
