"""Write class folders of 28x28 grey pictures, made from scikit-learn's digits by random shifts, turns and shears.

    python scripts/benchmarks/make_digit_folders.py --out digits28

The data set of the line "class folders" in docs/benchmarks.md. Needs the extra `quickstart`.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def distorted(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return an affine distortion of a 28x28 picture about its middle."""
    turn, zoom, shear = rng.normal(0, 0.15), rng.uniform(0.85, 1.1), rng.normal(0, 0.12)
    right, down = rng.uniform(-2, 2, 2)
    cosine, sine = np.cos(turn) / zoom, np.sin(turn) / zoom
    across = shear - sine
    x = (cosine, across, 14 - 14 * cosine - 14 * across + right)
    y = (sine, cosine, 14 - 14 * sine - 14 * cosine + down)
    return picture.transform((28, 28), Image.Transform.AFFINE, (*x, *y), Image.Resampling.BICUBIC)


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-images", type=int, default=12_000)
    arguments = parser.parse_args()
    rng, digits = np.random.default_rng(0), load_digits()
    for number in range(arguments.num_images):
        label = number % 10
        row = rng.choice(np.flatnonzero(digits.target == label))
        small = Image.fromarray((digits.images[row] * 255 / 16).astype(np.uint8))
        canvas = Image.new("L", (28, 28))
        canvas.paste(small.resize((22, 22), Image.Resampling.BICUBIC), (3, 3))
        folder = arguments.out / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        distorted(canvas, rng).save(folder / f"{number:05d}.png")


if __name__ == "__main__":
    main()
