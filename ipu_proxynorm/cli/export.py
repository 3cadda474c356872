"""``ipu-proxynorm export RUN_OR_CHECKPOINT OUT``: a run's weights for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Optional

from rich.console import Console

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.files.weights import SAFETENSORS, check_target, write_weights
from ipu_proxynorm.models import PROVIDERS
from ipu_proxynorm.training.export import WEIGHTS, export, find_checkpoint
from ipu_proxynorm.training.graph_export import GRAPHS, write_graph
from ipu_proxynorm.training.predict import predictor_of

#: What OUT's name says of its kind.
SUFFIX_FORMATS = {
    ".pt": "state_dict",
    ".pth": "state_dict",
    SAFETENSORS: "safetensors",
    **GRAPHS,
}
FORMATS = ("state_dict", "safetensors", "onnx", "torchscript")


def add_parser(subparsers: Any) -> None:
    """Add ``export`` to the sub-commands."""
    parser = subparsers.add_parser(
        "export",
        help="write a run's weights for other programs",
        description=(
            "Write weights as a state_dict of torch's (.pt, .pth) or as safetensors, or the whole "
            "network, from pixels to logits, as ONNX or TorchScript."
        ),
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
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="default: by how OUT ends (.pt, .pth: state_dict; .safetensors; .onnx; .torchscript)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(command=run)


def format_of(out: Path, asked: Optional[str]) -> str:
    """Return what to write: what is asked for, or what OUT's name says.

    Raises:
        UserError: the two are at odds.
    """
    stated = SUFFIX_FORMATS.get(out.suffix)
    if asked is None or asked == stated:
        return stated or "state_dict"  # an unknown name is refused by who writes weights
    if asked == "torchscript" and out.suffix in (".pt", ".pth"):
        return asked
    endings = ", ".join(suffix for suffix, kind in SUFFIX_FORMATS.items() if kind == asked)
    raise UserError(f"--format {asked}: OUT {str(out)!r} ends in {out.suffix!r}; use {endings}")


def export_graph(out: Path, kind: str, arguments: argparse.Namespace, console: Console) -> None:
    """Write the whole network as one file that other programs run."""
    if arguments.provider:
        raise UserError(f"--as {arguments.provider}: names weights, and --format {kind} has none")
    if out.exists() and not arguments.overwrite:
        raise UserError(f"OUT {str(out)!r} exists: choose another name, or pass --overwrite")
    source = find_checkpoint(arguments.source, arguments.which)
    checkpoint = load_checkpoint(source)
    exported = export(checkpoint, arguments.weights)
    predictor = predictor_of(
        checkpoint.config, dict(exported.weights), checkpoint.epoch, dict(checkpoint.inputs)
    )
    checked = write_graph(out, kind, predictor, exported.metadata)
    about, inputs = exported.metadata, predictor.inputs
    console.print(
        f"{out}: {kind} of {source} ({about['model']}, {about['norm']}, {about['epochs']}): "
        f"uint8 pixels (N, {inputs.channels}, {inputs.size}, {inputs.size}), the shorter side "
        f"resized to {inputs.resize} before the middle is cropped, to logits of "
        f"{len(inputs.classes)} classes, whose names are in the file\n{checked}"
    )


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Write the weights and print what they are and what to give the network."""
    out = Path(arguments.out)
    kind = format_of(out, arguments.format)
    if kind in GRAPHS.values():
        export_graph(out, kind, arguments, console)
        return
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
