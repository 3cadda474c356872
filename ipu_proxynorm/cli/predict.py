"""``ipu-proxynorm predict RUN_OR_WEIGHTS IMAGE...``: the likeliest classes of images."""

from __future__ import annotations

import argparse
import csv
import io
import json
import warnings
from typing import Any, Iterable, List

from rich.console import Console

from ipu_proxynorm.errors import UserError, UserNotice
from ipu_proxynorm.training.export import WEIGHTS
from ipu_proxynorm.training.predict import Prediction, image_paths, load_predictor, predict

FORMATS = ("text", "csv", "json")


def add_parser(subparsers: Any) -> None:
    """Add ``predict`` to the sub-commands."""
    parser = subparsers.add_parser(
        "predict",
        help="name the likeliest classes of images",
        description="Predict the classes of images with a run's network, on the CPU.",
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_WEIGHTS",
        help="e.g. runs/photos, runs/photos/best.pt, or an exported weights.safetensors",
    )
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image files, or folders with them at any depth"
    )
    parser.add_argument("--top", type=int, default=5, help="classes of each image; default: 5")
    parser.add_argument("--batch", type=int, default=32, help="images at once; default: 32")
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument(
        "--which", metavar="NAME", help="of a run: last, best, or another; default: last"
    )
    parser.add_argument(
        "--weights", choices=WEIGHTS, default="raw", help="the weights, or their average"
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Print what each image is; say which ones cannot be read, and why."""
    for option in ("top", "batch"):
        value = getattr(arguments, option)
        if value < 1:
            raise UserError(f"--{option} {value}: expected an integer from 1 up")
    paths = image_paths(arguments.images)
    predictor = load_predictor(arguments.source, arguments.which, arguments.weights)
    found: List[Prediction] = []
    for path, prediction, why in predict(predictor, paths, arguments.top, arguments.batch):
        if prediction is None:
            warnings.warn(f"{str(path)!r} {why}, left out", UserNotice, stacklevel=2)
        else:
            found.append(prediction)
            if arguments.format == "text":
                console.print(line(prediction))
    if not found:
        raise UserError("none of the images can be read")
    if arguments.format == "csv":
        console.print(table(found), end="")
    elif arguments.format == "json":
        console.print(json.dumps([entry(p) for p in found], ensure_ascii=False, indent=1))


def line(prediction: Prediction) -> str:
    """Return a prediction in a line: the image, then classes with their shares."""
    named = ", ".join(f"{name} {share:.1%}" for name, share in prediction.classes)
    return f"{prediction.image}: {named}"


def entry(prediction: Prediction) -> Any:
    """Return a prediction for JSON."""
    classes = [{"class": name, "probability": share} for name, share in prediction.classes]
    return {"image": prediction.image, "classes": classes}


def table(predictions: Iterable[Prediction]) -> str:
    """Return CSV with a row for each image and class."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("image", "rank", "class", "probability"))
    for found in predictions:
        for rank, (name, share) in enumerate(found.classes, 1):
            rows.writerow((found.image, rank, name, f"{share:.6f}"))
    return file.getvalue()
