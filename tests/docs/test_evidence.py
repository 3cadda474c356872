"""The page of evidence: its pictures exist and are small, its commands are commands."""

import re
import shlex
from pathlib import Path

import pytest

from ipu_proxynorm.cli.main import parse

PAGE = Path("docs/evidence.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("ipu-proxynorm ")[2]
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if "ipu-proxynorm " in line
]


def test_pictures_exist_and_are_small():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)
    assert pictures
    for picture in pictures:
        path = Path("docs", picture)
        assert 0 < path.stat().st_size < 300_000, path
        assert "prefers-color-scheme:dark" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood_and_their_configurations_exist(command):
    words = shlex.split(command.partition("#")[0].replace("[RUN_DIR ...]", "RUN_DIR"))
    parse(words)
    for word in words:
        if word.startswith("configs/"):
            assert Path(word).is_file()
