"""``ipu-proxynorm analyse CONFIG|RUN_DIR``: what each norm does to a network's activations."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import Any, Callable, Dict, Sequence, Tuple

from rich.console import Console
from rich.table import Column, Table

from ipu_proxynorm.analysis import record_power, record_proxies
from ipu_proxynorm.analysis.measure import (
    Measure,
    Record,
    check_one_network,
    observed_at_start,
    observed_of_run,
    power_of_module,
)
from ipu_proxynorm.analysis.power_log import average, read_power_log
from ipu_proxynorm.cli.arguments import add_format, norm_specs, report_formats
from ipu_proxynorm.config import RunConfig, load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.norm import parse_norm_spec
from ipu_proxynorm.report import findings
from ipu_proxynorm.report.power_page import EXCERPT, Result, excerpt, labels, power_findings
from ipu_proxynorm.report.proxy_tables import DISTANCE_COLUMNS, Distances, distance_rows
from ipu_proxynorm.run.directory import CHECKPOINTS, RunDirectory
from ipu_proxynorm.run.foreign import (
    METAVAR,
    load_module,
    module_config,
    names_module,
    parse_inputs,
)

NORMS = "bn,in,ln,gn4,ln+pn,ln+ws"
IMAGES, BATCH_SIZE = 128, 32


def add_parser(subparsers: Any) -> None:
    """Add ``analyse`` to the sub-commands."""
    parser = subparsers.add_parser(
        "analyse",
        help="decompose the power after each normalization of a network",
        description="Decompose the power after each normalization, over depth: of CONFIG's network "
        "at initialisation under each of --norms, of trained networks, one or more RUN_DIRs, or of "
        "any network of yours, file.py:factory or package.module:factory, on noise of --input.",
    )
    parser.add_argument(
        "subject",
        metavar=f"CONFIG|RUN_DIR|{METAVAR}",
        help="a YAML file, a run's folder or a module, e.g. net.py:Net",
    )
    parser.add_argument(
        "--input",
        metavar="SHAPE",
        action="append",
        default=[],
        help="of a module: shape of its input, the images at once first, e.g. 32x3x224x224",
    )
    parser.add_argument(
        "overrides",
        metavar="key=value|RUN_DIR",
        nargs="*",
        help="overrides, e.g. model.name=random_200; further runs to draw beside the first",
    )
    parser.add_argument("--norms", help=f"CONFIG: norm specs; default: {NORMS}")
    parser.add_argument("--images", type=int, help=f"validation images; default: {IMAGES}")
    parser.add_argument(
        "--batch-size",
        type=int,
        help=f"images at once, no figure depends on it; default: {BATCH_SIZE}",
    )
    parser.add_argument(
        "--inputs", choices=("data", "random"), help="images, or Gaussian noise; default: data"
    )
    parser.add_argument("--layers", help="only these, e.g. 'layer1.*'; default: all")
    parser.add_argument(
        "--checkpoint", choices=(*CHECKPOINTS, "init"), help="RUN_DIR: which; default: last"
    )
    parser.add_argument(
        "--epochs",
        action="store_true",
        help="RUN_DIR: the mean over the epochs recorded in training (training.analyse_every)",
    )
    parser.add_argument("--out", help="folder of the report; default: <runs>/analyse-<name>")
    add_format(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Analyse, print a table of first, middle and last layer, and write the report."""
    formats = report_formats(arguments)
    for option in ("images", "batch_size"):
        if getattr(arguments, option) is not None and getattr(arguments, option) < 1:
            name = option.replace("_", "-")
            raise UserError(f"--{name}={getattr(arguments, option)}: expected 1 or more")
    if arguments.out:
        findings.check_writable(Path(arguments.out))
    folders = [word for word in arguments.overrides if "=" not in word]
    distances: Distances = {}
    if names_module(arguments.subject):
        config, result = of_module(arguments, console)
    elif arguments.input:
        raise UserError("--input: it needs a module such as net.py:Net, not a CONFIG or RUN_DIR")
    elif Path(arguments.subject).is_dir():
        config, result, distances = of_runs(arguments, [arguments.subject, *folders], console)
    else:
        if folders:
            raise UserError(
                f"{folders[0]!r}: expected key=value after CONFIG {arguments.subject!r}; only "
                f"folders of runs can be drawn together"
            )
        config, result, distances = of_config(arguments, console)
    console.print(table(result))
    worst = max(abs(p.total - p.mean_power) for found in result.values() for p in found.values())
    console.print(f"the four powers sum to the mean power of every layer, to {worst:.1e} or better")
    if distances:
        console.print(distance_table(distances))
    folder = Path(arguments.out or Path(config.runs, f"analyse-{config.name}"))
    for path in findings.write(folder, formats, power_findings(config, result, distances)):
        console.print(f"wrote {path}")


def of_config(
    arguments: argparse.Namespace, console: Console
) -> Tuple[RunConfig, Result, Distances]:
    """Analyse a configuration's network at initialisation, under each norm spec."""
    for option in ("checkpoint", "epochs"):
        if getattr(arguments, option) not in (None, False, "init"):
            raise UserError(f"--{option}: expected a run's folder, not CONFIG {arguments.subject}")
    text = NORMS if arguments.norms is None else arguments.norms
    result: Result = {}
    distances: Distances = {}
    for norm in norm_specs(text, NORMS):
        config = load(arguments.subject, [*arguments.overrides, f"model.norm={norm}"])
        result[norm] = observed_at_start(config, measure(arguments), record_power)
        if parse_norm_spec(norm).proxy:
            distances[norm] = observed_at_start(config, measure(arguments), record_proxies)
        console.print(f"{norm}: {len(result[norm])} normalizations")
    return load(arguments.subject, arguments.overrides), result, distances


def of_module(arguments: argparse.Namespace, console: Console) -> Tuple[RunConfig, Result]:
    """Analyse a network of the user's own, as its factory makes it, on Gaussian noise.

    Raises:
        UserError: there is no such network, it takes several inputs, or an option is not its own.
    """
    for option in ("checkpoint", "epochs", "norms", "overrides", "batch_size"):
        if getattr(arguments, option):
            name = option.replace("_", "-") if option != "overrides" else "key=value"
            raise UserError(f"--{name}: it does not go with a module such as {arguments.subject}")
    if arguments.inputs == "data":
        raise UserError(f"--inputs=data: {arguments.subject} has no data; leave it out")
    inputs = parse_inputs(arguments.subject, arguments.input)
    if len(inputs) > 1 or not inputs[0].is_floating_point() or inputs[0].dim() < 3:
        raise UserError(
            f"--input {' '.join(arguments.input)}: expected one input of floats (N, C, ...), e.g. "
            f"32x3x224x224"
        )
    model = load_module(arguments.subject)
    size, *shape = inputs[0].shape
    asked = dataclasses.replace(measure(arguments), batch_size=size)
    config = module_config(arguments.subject, model, size)
    result = {"as made": power_of_module(model, shape, asked)}
    console.print(f"{config.model.name}: {len(result['as made'])} normalizations, on noise")
    return config, result


def of_runs(
    arguments: argparse.Namespace, folders: Sequence[str], console: Console
) -> Tuple[RunConfig, Result, Distances]:
    """Analyse the networks of runs, each drawn under its norm spec."""
    if arguments.norms:
        raise UserError(
            f"--norms={arguments.norms}: a run has one norm; give the folders of several runs, or "
            f"a CONFIG to compare norms at initialisation"
        )
    extra = [word for word in arguments.overrides if "=" in word]
    if extra:
        raise UserError(f"override {extra[0]!r}: a run's configuration is what it was trained with")
    if arguments.epochs:
        check_epochs(arguments)
    folders = list(dict.fromkeys(folders))
    configs = [RunDirectory(folder).config() for folder in folders]
    check_one_network(folders, configs)
    result: Result = {}
    distances: Distances = {}
    for folder, config, name in zip(folders, configs, labels(folders, configs)):
        directory = RunDirectory(folder)
        if arguments.epochs:
            result[name] = average(read_power_log(directory.path))
            continue
        observe = observation(arguments, config, directory)
        result[name] = observe(record_power)
        if parse_norm_spec(config.model.norm).proxy:
            distances[name] = observe(record_proxies)
        console.print(f"{name}: {len(result[name])} normalizations of {folder}")
    return configs[0], result, distances


def observation(
    arguments: argparse.Namespace, config: RunConfig, directory: RunDirectory
) -> Callable[[Record[Any]], Dict[str, Any]]:
    """Return how a record is had of the checkpoint that ``--checkpoint`` names."""
    asked = measure(arguments)
    if arguments.checkpoint == "init":
        return functools.partial(observed_at_start, config, asked)
    checkpoint = load_checkpoint(directory.checkpoint(arguments.checkpoint or "last"))
    return functools.partial(observed_of_run, config, checkpoint, asked)


def check_epochs(arguments: argparse.Namespace) -> None:
    """Refuse what a record from training cannot be asked for any more.

    Raises:
        UserError: an option says how to measure.
    """
    for option in ("images", "batch_size", "inputs", "layers", "checkpoint"):
        if getattr(arguments, option) is not None:
            name = option.replace("_", "-")
            raise UserError(
                f"--epochs --{name}={getattr(arguments, option)}: what training recorded is shown "
                f"as it is; leave out --{name}, or --epochs"
            )


def measure(arguments: argparse.Namespace) -> Measure:
    """Return what the command line asks to be measured."""
    return Measure(
        images=IMAGES if arguments.images is None else arguments.images,
        batch_size=BATCH_SIZE if arguments.batch_size is None else arguments.batch_size,
        layers="*" if arguments.layers is None else arguments.layers,
        noise=arguments.inputs == "random",
    )


def table(result: Result) -> Table:
    """Return the first, the middle and the last normalization of each norm, no name cut off."""
    norm, layer, *figures = EXCERPT
    shown = Table(norm, Column(layer, overflow="fold"), *figures)
    for row in excerpt(result):
        shown.add_row(*row)
    return shown


def distance_table(distances: Distances) -> Table:
    """Return how far each layer's channels are from their proxies."""
    shown = Table(title="channels and proxies")
    for column in DISTANCE_COLUMNS:
        shown.add_column(column, min_width=max(map(len, column.split())), overflow="fold")
    for row in distance_rows(distances):
        shown.add_row(*row)
    return shown
