"""``ipu-proxynorm export RUN_OR_CHECKPOINT OUT``: a run's weights for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.files.weights import SAFETENSORS, check_target, write_weights
from ipu_proxynorm.models import PROVIDERS
from ipu_proxynorm.training.export import WEIGHTS, export, find_checkpoint


def add_parser(subparsers: Any) -> None:
    """Add ``export`` to the sub-commands."""
    parser = subparsers.add_parser(
        "export",
        help="write a run's weights for other programs",
        description="Write weights as a state_dict of torch's (.pt, .pth) or as safetensors.",
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_CHECKPOINT",
        help="e.g. runs/quickstart or runs/quickstart/best.pt",
    )
    parser.add_argument("out", metavar="OUT", help="e.g. weights.pt, or weights.safetensors")
    parser.add_argument(
        "--which",
        "--checkpoint",
        dest="which",
        metavar="NAME",
        help="of a run: last, best, or another of its checkpoints, e.g. last-1; default: last",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="raw",
        help="the weights, or their average where the run kept one; default: raw",
    )
    parser.add_argument(
        "--as",
        dest="provider",
        choices=PROVIDERS,
        help="name the weights as torchvision's or timm's network of the same name does",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Write the weights and print what they are and what to give the network."""
    out = Path(arguments.out)
    check_target(out, arguments.overwrite)
    source = find_checkpoint(arguments.source, arguments.which)
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"OUT {arguments.out!r} is the checkpoint itself; choose another name")
    exported = export(load_checkpoint(source), arguments.weights, arguments.provider)
    about = exported.metadata
    write_weights(out, exported.weights, about, arguments.overwrite)
    tensors, numbers = len(exported.weights), sum(v.numel() for v in exported.weights.values())
    kind = "averaged weights" if arguments.weights == "average" else "weights"
    accuracy = about.get("validation_accuracy")
    reached = f", validation accuracy {float(accuracy):.2%}" if accuracy else ""
    console.print(
        f"{out}: {kind} of {source} ({about['model']}, {about['norm']}, "
        f"{about['epochs']}{reached}): {tensors} tensors, {numbers:,} numbers\n"
        f"images: pixels / 255, less the mean ({about['mean']}), over ({about['std']}) per channel"
    )
    if arguments.provider:
        console.print(f"network: {about['network']}, then load_state_dict of {out.name}")
    if out.suffix != SAFETENSORS:
        console.print("only .safetensors keeps norm, epochs and accuracy beside the weights")
