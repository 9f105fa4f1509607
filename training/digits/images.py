"""The handwritten digits as folders of images, one sub-folder a class: what `thrifty` calibrates and judges image models on.

Usage: python images.py FOLDER            (writes FOLDER/train and FOLDER/held-out)
Every third image of the file is held out: 599 of 1,797. Pixels from 0 to 16 become greys from 0 to 240.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy
from PIL import Image

DATA = Path(__file__).parent / "digits.csv.gz"
SIDE, LIGHTEST = 8, 16
SPLITS = ("train", "held-out")


def digits(split: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(greys uint8 [images, 8, 8], classes int64 [images]) of `train` or `held-out`."""
    with gzip.open(DATA, "rt") as file:
        table = numpy.loadtxt(file, delimiter=",", dtype=numpy.int64)
    chosen = (numpy.arange(len(table)) % 3 == 2) == (split == "held-out")
    pixels = table[chosen, :-1].reshape(-1, SIDE, SIDE)
    return (pixels * (240 // LIGHTEST)).astype(numpy.uint8), table[chosen, -1]


def write(folder: Path) -> None:
    """Write the images of both splits as FOLDER/SPLIT/CLASS/NUMBER.png."""
    for split in SPLITS:
        for number, (pixels, label) in enumerate(zip(*digits(split), strict=True)):
            path = folder / split / str(label) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
