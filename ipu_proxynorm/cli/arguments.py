"""What sub-commands have in common on the command line: CONFIG, its overrides, lists, formats."""

from __future__ import annotations

import argparse
from typing import List, Optional

from ipu_proxynorm.config import UNNEEDED_WITHOUT_A_RUN, RunConfig, load
from ipu_proxynorm.errors import UserError, blame
from ipu_proxynorm.norm import parse_norm_spec
from ipu_proxynorm.report import findings
from ipu_proxynorm.run.foreign import METAVAR

#: What ``--format`` asks for where it is left out.
FORMATS = "html,png"


def add_config(
    parser: argparse.ArgumentParser,
    override: str,
    *,
    example: str = "configs/quickstart.yaml",
    nargs: Optional[str] = None,
    or_module: bool = False,
) -> None:
    """Add CONFIG and its overrides to the parser of a sub-command.

    Args:
        parser: the parser of the sub-command.
        override: an example of one.
        example: an example of CONFIG.
        nargs: the number of CONFIGs, as argparse takes it; None: exactly one.
        or_module: a module of the user's may stand in its place.
    """
    metavar, text = "CONFIG", f"e.g. {example}"
    if or_module:
        metavar, text = f"CONFIG|{METAVAR}", f"{text}; or a module, e.g. net.py:Net"
    parser.add_argument("config", metavar=metavar, nargs=nargs, help=text)
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help=f"overrides, e.g. {override}"
    )


def read_config(arguments: argparse.Namespace, trains: bool = True) -> RunConfig:
    """Return the checked configuration that CONFIG and the overrides describe.

    Args:
        arguments: of the command line.
        trains: False where the run's images, weights and records are not looked at: environment
            variables that these ask for may then be missing.

    Raises:
        UserError: CONFIG was left out where a sub-command lets it be, cannot be read, or is wrong.
    """
    if arguments.config is None:
        raise UserError("CONFIG is missing: expected a YAML file, e.g. configs/quickstart.yaml")
    return load(arguments.config, arguments.overrides, () if trains else UNNEEDED_WITHOUT_A_RUN)


def words(text: str) -> List[str]:
    """Return the words between commas, each once, in order."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def norm_specs(text: str, example: str) -> List[str]:
    """Return the norm specs of ``--norms``, as they are written there.

    Raises:
        UserError: there is none, or one is no norm spec.
    """
    norms = words(text)
    if not norms:
        raise UserError(f"--norms={text}: expected norm specs, e.g. {example}")
    for norm in norms:
        with blame("--norms", text):
            parse_norm_spec(norm)
    return norms


def integers(option: str, text: str, least: int) -> List[int]:
    """Return the integers between commas, from ``least`` up.

    Raises:
        UserError: there is none, or a word is no such integer.
    """
    found = words(text)
    if not found or not all(word.isdigit() and int(word) >= least for word in found):
        raise UserError(f"{option}={text}: expected integers from {least} up, e.g. 1,2,4")
    return [int(word) for word in found]


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add ``--format``, the parts of a report to write, to the parser of a sub-command."""
    parser.add_argument(
        "--format",
        default=FORMATS,
        help=f"what to write, of {', '.join(findings.FORMATS)}; default: {FORMATS}",
    )


def report_formats(arguments: argparse.Namespace) -> List[str]:
    """Return the formats in which a report is asked for.

    Raises:
        UserError: a format is unknown, or there is none; or it is drawn, and matplotlib is missing.
    """
    formats = findings.formats_of(arguments.format)
    findings.check_drawing(formats)
    return formats
