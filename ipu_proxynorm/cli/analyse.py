"""``run_ipu.py analyse CONFIG|RUN_DIR``: what each norm does to a network's activations."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from rich.console import Console
from rich.table import Column, Table

from ipu_proxynorm.analysis import POWERS, Power
from ipu_proxynorm.analysis.measure import Measure, on_the_host, power_of
from ipu_proxynorm.analysis.power_log import average, read_power_log
from ipu_proxynorm.cli import reporting
from ipu_proxynorm.cli.arguments import norm_specs
from ipu_proxynorm.config import RunConfig, dump, load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.run.directory import CHECKPOINTS, RunDirectory
from ipu_proxynorm.run.run import build, load_weights

NORMS = "bn,in,ln,gn4,ln+pn,ln+ws"
IMAGES, BATCH_SIZE = 128, 32
COLUMNS = ("norm", "number", "layer", *POWERS, "sum", "mean power", "instances")
#: Of the short table, on the terminal and at the head of the page.
EXCERPT = ("norm", "layer", "P1", "P2", "P3", "P4", "mean power")
#: For each curve of the plots its power after each normalization, by layer.
Result = Dict[str, Dict[str, Power]]


def add_parser(subparsers: Any) -> None:
    """Add ``analyse`` to the sub-commands."""
    parser = subparsers.add_parser(
        "analyse",
        help="decompose the power after each normalization of a network",
        description="Decompose the power after each normalization, over depth: of CONFIG's network "
        "at initialisation under each of --norms, or of trained networks, one or more RUN_DIRs.",
    )
    parser.add_argument("subject", metavar="CONFIG|RUN_DIR", help="a YAML file or a run's folder")
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
    reporting.add_format(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Analyse, print a table of first, middle and last layer, and write the report."""
    formats = reporting.formats_of(arguments.format)
    for option in ("images", "batch_size"):
        if getattr(arguments, option) is not None and getattr(arguments, option) < 1:
            name = option.replace("_", "-")
            raise UserError(f"--{name}={getattr(arguments, option)}: expected 1 or more")
    if arguments.out:
        reporting.check_writable(Path(arguments.out))
    folders = [word for word in arguments.overrides if "=" not in word]
    if Path(arguments.subject).is_dir():
        config, result = of_runs(arguments, [arguments.subject, *folders], console)
    else:
        if folders:
            raise UserError(
                f"{folders[0]!r}: expected key=value after CONFIG {arguments.subject!r}; only "
                f"folders of runs can be drawn together"
            )
        config, result = of_config(arguments, console)
    console.print(table(result))
    worst = max(abs(p.total - p.mean_power) for found in result.values() for p in found.values())
    console.print(f"the four powers sum to the mean power of every layer, to {worst:.1e} or better")
    folder = Path(arguments.out or Path(config.runs, f"analyse-{config.name}"))
    for path in reporting.write(folder, formats, findings(arguments, config, result)):
        console.print(f"wrote {path}")


def of_config(arguments: argparse.Namespace, console: Console) -> Tuple[RunConfig, Result]:
    """Analyse a configuration's network at initialisation, under each norm spec."""
    for option in ("checkpoint", "epochs"):
        if getattr(arguments, option) not in (None, False, "init"):
            raise UserError(f"--{option}: expected a run's folder, not CONFIG {arguments.subject}")
    text = NORMS if arguments.norms is None else arguments.norms
    result: Result = {}
    for norm in norm_specs(text, NORMS):
        config = load(arguments.subject, [*arguments.overrides, f"model.norm={norm}"])
        run = build(on_the_host(config))
        result[norm] = power_of(run, measure(arguments), trained=False)
        console.print(f"{norm}: {len(result[norm])} normalizations")
    return load(arguments.subject, arguments.overrides), result


def of_runs(
    arguments: argparse.Namespace, folders: Sequence[str], console: Console
) -> Tuple[RunConfig, Result]:
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
    networks = dict.fromkeys((config.model.name, config.data.name) for config in configs)
    if len(networks) > 1:
        shown = " and ".join(f"{model} on {data}" for model, data in networks)
        raise UserError(
            f"RUN_DIRs {', '.join(folders)}: these are {shown}; give runs of one network on one "
            f"dataset, or analyse them one by one"
        )
    result: Result = {}
    for folder, config, name in zip(folders, configs, labels(folders, configs)):
        directory = RunDirectory(folder)
        if arguments.epochs:
            result[name] = average(read_power_log(directory.path))
            continue
        run = build(on_the_host(config))
        trained = arguments.checkpoint != "init"
        if trained:
            checkpoint = load_checkpoint(directory.checkpoint(arguments.checkpoint or "last"))
            load_weights(run, checkpoint)
        result[name] = power_of(run, measure(arguments), trained=trained)
        console.print(f"{name}: {len(result[name])} normalizations of {folder}")
    return configs[0], result


def labels(folders: Sequence[str], configs: Sequence[RunConfig]) -> List[str]:
    """Return a name of its own for each run: its norm, and what tells it from others of that."""
    norms = [config.model.norm for config in configs]
    ends = [Path(folder).resolve().name for folder in folders]
    return [
        norm if norms.count(norm) == 1 else f"{norm} ({end if ends.count(end) == 1 else folder})"
        for norm, end, folder in zip(norms, ends, folders)
    ]


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


def excerpt(result: Result) -> List[Tuple[str, ...]]:
    """Return the first, the middle and the last normalization of each norm, by `EXCERPT`."""
    rows = []
    for norm, found in result.items():
        layers = list(found)
        for place in sorted({0, len(layers) // 2, len(layers) - 1}):
            power = found[layers[place]]
            values = [getattr(power, name) for name in (*POWERS, "mean_power")]
            figures = [f"{value:.4f}" for value in values]
            rows.append((norm, f"{layers[place]} ({place + 1})", *figures))
    return rows


def table_rows(result: Result) -> List[Tuple[Any, ...]]:
    """Return every normalization of every norm as a row, by `COLUMNS`."""
    return [
        (norm, number, layer, p.p1, p.p2, p.p3, p.p4, p.total, p.mean_power, p.instances)
        for norm, found in result.items()
        for number, (layer, p) in enumerate(found.items(), start=1)
    ]


def findings(
    arguments: argparse.Namespace, config: RunConfig, result: Result
) -> reporting.Findings:
    """Return what to write."""
    curves: Mapping[str, Mapping[str, Sequence[float]]] = {
        norm: {name: [getattr(p, name) for p in found.values()] for name in POWERS}
        for norm, found in result.items()
    }
    rows = table_rows(result)
    title = f"Power after each normalization: {config.model.name} on {config.data.name}"

    def figures() -> Dict[str, Any]:
        from ipu_proxynorm.report.power import combined

        return {"power": combined(curves)}

    def report() -> Any:
        from ipu_proxynorm.report.html import HtmlTable, Report, Section
        from ipu_proxynorm.report.power import panels

        text = [[v if isinstance(v, str) else f"{v:.6g}" for v in row] for row in rows]
        return Report(
            title=title,
            text=[
                "μ and σ are the mean and the standard deviation over space of one channel of one "
                "image, after normalization and before scale, shift and activation. Means E and "
                "variances Var are over images; powers are means over channels. The four sum to "
                "the mean power of the tensor, which is 1 after normalization."
            ],
            command=reporting.command_line(),
            configuration=dump(config),
            versions=reporting.versions(),
            sections=[
                Section("Over depth", norms=list(curves), panels=panels(curves, title)),
                Section(
                    "Figures",
                    tables=[
                        HtmlTable("First, middle and last normalization", EXCERPT, excerpt(result)),
                        HtmlTable(
                            f"Every normalization, in order of depth ({len(text)} rows)",
                            [name.upper() if name in POWERS else name for name in COLUMNS],
                            text,
                            folded=True,
                        ),
                    ],
                ),
            ],
        )

    values = {
        "config": dump(config),
        "power": {
            norm: {layer: dataclasses.asdict(power) for layer, power in found.items()}
            for norm, found in result.items()
        },
    }
    return reporting.Findings(COLUMNS, rows, values, figures, report, title)
