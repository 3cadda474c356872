"""A folder of photographs to try things on: crops of the two that scikit-learn brings.

``python docs/photos.py photos`` writes 100 crops of each to ``photos/train/<class>/`` and 20 to
``photos/val/<class>/``; the latter are from the right quarter of a photograph, the former from the
rest.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

SIZE = 96  # pixels, height and width of a crop
PARTS = {"train": (0.0, 0.75, 100), "val": (0.75, 1.0, 20)}  # from, to of the width; crops


def main(folder: Path) -> None:
    """Write the crops below ``folder``, the same each time."""
    draw = random.Random(0)
    bundle = load_sample_images()
    for name, pixels in zip(bundle.filenames, bundle.images):
        photograph = Image.fromarray(pixels)
        for part, (start, end, crops) in PARTS.items():
            target = folder / part / Path(name).stem
            target.mkdir(parents=True, exist_ok=True)
            for number in range(crops):
                left = draw.randrange(
                    int(start * photograph.width), int(end * photograph.width) - SIZE
                )
                top = draw.randrange(photograph.height - SIZE)
                crop = photograph.crop((left, top, left + SIZE, top + SIZE))
                crop.save(target / f"{number:02}.jpg", quality=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
