"""Fine-tune a model of digits on 200 pictures of one digit, and count that digit among its samples.

    python scripts/benchmarks/fine_tuning.py --model runs/quickstart/model --out runs/fine-tuning --digits 1 3 8

For each digit the pictures are written once as a flat folder and once as a folder with one class folder;
`vq-prior train-prior --from MODEL --lora --data ...` runs on each (more flags go behind `--`). Prints a line of JSON a
run: the wall-clock seconds of the command, the share of 500 unconditional samples that a support-vector classifier
fitted on all real digits names as that digit, and the same of samples of the class. scikit-learn has 174 to 183
pictures of a digit; noise below one of its 17 grey levels makes 200 of them. Needs the extras `quickstart` and `lora`.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from vq_prior import VQPriorPipeline

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_PICTURES = 200


def write_pictures(folder: Path, digit: int) -> None:
    """Write 200 pictures of one digit."""
    digits, rng = load_digits(), np.random.default_rng(digit)
    own = digits.images[digits.target == digit]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PICTURES):
        pixels = own[number % len(own)] * 15 + rng.integers(0, 16, (8, 8))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")


def named_by(classifier: Any, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the digit that the classifier sees in each picture."""
    names: NDArray[np.int64] = classifier.predict(images.reshape(len(images), -1) * (16 / 255))
    return names


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--digits", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--full", action="store_true", help="train every weight, not adapters")
    parser.add_argument("flags", nargs="*", help="more flags of train-prior, behind --")
    arguments = parser.parse_args()
    real = load_digits()
    classifier = SVC(gamma="scale", C=10).fit(real.data, real.target)
    base = VQPriorPipeline.from_pretrained(arguments.model)
    before = named_by(classifier, base(arguments.num_images, unconditional=True, output_type="np").images)
    for digit in arguments.digits:
        for kind in ("flat", "class"):
            data = arguments.out / f"{kind}-{digit}"
            write_pictures(data if kind == "flat" else data / NAMES[digit], digit)
            run = arguments.out / f"run-{kind}-{digit}"
            words = ["train-prior", "--from", arguments.model, "--data", str(data), "--out", str(run), "--overwrite"]
            words += ["--no-lora" if arguments.full else "--lora", *arguments.flags]
            started = time.monotonic()
            subprocess.run([sys.executable, "-m", "vq_prior", *words], check=True, stdout=subprocess.DEVNULL)
            seconds = time.monotonic() - started
            tuned = VQPriorPipeline.from_pretrained(run / "model")
            freely = tuned(arguments.num_images, unconditional=True, seed=1, output_type="np").images
            result: dict[str, Any] = {
                "digit": NAMES[digit],
                "data": kind,
                "seconds": round(seconds, 1),
                "share_before": float((before == digit).mean()),
                "share_unconditional": float((named_by(classifier, freely) == digit).mean()),
                "distinct": len(np.unique(freely.reshape(len(freely), -1), axis=0)) / len(freely),
                "temperature": tuned.index.sampling.temperature,
                "guidance_scale": tuned.index.sampling.guidance_scale,
            }
            if kind == "class":
                of_class = tuned(arguments.num_images, seed=1, output_type="np").images
                result["share_of_class"] = float((named_by(classifier, of_class) == digit).mean())
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
