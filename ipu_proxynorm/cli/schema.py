"""``ipu-proxynorm schema``: the JSON schema by which editors check and complete configurations."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from ipu_proxynorm.cli.output import write_text
from ipu_proxynorm.config.json_schema import json_schema


def add_parser(subparsers: Any) -> None:
    """Add ``schema`` to the sub-commands."""
    parser = subparsers.add_parser(
        "schema",
        help="write the JSON schema of configurations, for editors",
        description="Print the JSON schema of configurations. Editors complete and check YAML files"
        " by it; VS Code's YAML extension finds it by a first line such as '# yaml-language-server:"
        " $schema=ipu-proxynorm.schema.json'.",
    )
    parser.add_argument("--output", metavar="FILE", help="write it there")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Print the schema, or write it."""
    text = json.dumps(json_schema(), indent=1) + "\n"
    if arguments.output is None:
        console.print(text, end="")
        return
    write_text(Path(arguments.output), text)
    console.print(f"wrote {arguments.output}")
