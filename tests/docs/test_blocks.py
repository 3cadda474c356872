"""Every Python and console block of README and docs runs, or says above why it cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import List, NamedTuple, Optional
from unittest.mock import patch

import pytest

from ipu_proxynorm.cli.main import main, parse
from ipu_proxynorm.config import documentation, load, loads
from ipu_proxynorm.config.shipped import located
from ipu_proxynorm.ipu import training_options
from ipu_proxynorm.models import MODELS

FENCE = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICKSTART = "train configs/quickstart.yaml training.epochs=1"

#: What a long command is given besides, so that it ends soon. The last of an option counts.
SHORTER = {
    "compare CONFIG": "training.epochs=1 --norms gn4+pn --micro-batch 8 --seeds 0 --format csv",
    "analyse CONFIG": "--norms ln --images 2 --format csv",
    "analyse RUN_DIR": "--images 8 --format csv",
    "compare configs/compare/digits.yaml": "training.epochs=1 --seeds 0 --format csv",
    "compare configs/compare/digits.yaml --norms": "--norms gn4+pn,ln --micro-batch 8,32",
    "compare configs/compare/digits.yaml name=": "--norms gn4+pn",
    "analyse configs/analyse/random_net.yaml": "--norms ln --images 2 --format csv",
    "analyse bn_mb32_seed0": "--images 8 --format csv",
    "memory configs/imagenet/": "--norms gn4 --micro-batch 1..2 --format csv",
}
#: What patterns of commands have in the place of names.
NAMES = {"CONFIG": "configs/compare/digits.yaml", "RUN_DIR": "runs/quickstart"}


class Block(NamedTuple):
    """A block of code of a page, and why it is not run."""

    page: str
    line: int
    language: str
    text: str
    shown: str  # the block after it, where that has no language: what it prints
    reason: Optional[str]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> List[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    blocks = []
    for index, match in enumerate(found):
        note, language, code = match.groups()
        shown = ""
        if index + 1 < len(found):
            after = found[index + 1]
            if not after[2] and not text[match.end() : after.start()].strip():
                shown = after[3]
        reason = note[len("not run: ") :] if note and note.startswith("not run: ") else None
        line = text.count("\n", 0, match.start(3))
        blocks.append(Block(str(page), line, language, code, shown, reason))
    return blocks


PAGES = (Path("README.md"), *sorted(Path("docs").glob("*.md")))
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [b for b in BLOCKS if b.language == "python" and b.page != "README.md"]
#: README's example of the library is run by test_readme.py; this one needs what commands made.
(ONNX,) = [b for b in BLOCKS if b.language == "python" and "photos.onnx" in b.text]
CONSOLE = [b for b in BLOCKS if b.language == "console"]
RECIPES = [b for b in BLOCKS if b.language == "yaml" and "training:" in b.text]


def commands_of(block: Block) -> List[str]:
    """Return the commands after the prompts, without comments and what is optional."""
    lines = block.text.replace("\\\n", " ").splitlines()
    commands = [line[2:].partition(" # ")[0] for line in lines if line.startswith("$ ")]
    return [re.sub(r" \[[^]]*(\.\.\.|--)[^]]*\]", "", command).strip() for command in commands]


def arguments_of(command: str) -> Optional[List[str]]:
    """Return the arguments of a command of ours; None: it is none."""
    words = shlex.split(command)
    ours = words[0] in ("ipu-proxynorm", ".venv/bin/ipu-proxynorm")
    return [NAMES.get(word, word) for word in words[1:] if word != "..."] if ours else None


def test_there_is_no_other_way_to_be_left_out():
    assert len(PYTHON) >= 9
    assert len(CONSOLE) >= 20
    for block in BLOCKS:
        if block.reason is not None:
            assert block.language in ("console", "python"), block
            assert block.reason.startswith("needs "), block


@pytest.mark.parametrize("block", CONSOLE, ids=str)
def test_commands_are_understood_and_their_recipes_are_shipped(block):
    assert commands_of(block)
    for command in commands_of(block):
        arguments = arguments_of(command)
        if arguments is not None:
            parse(arguments)
            for word in arguments:
                if word.startswith("configs/") and not (block.reason and word in block.reason):
                    assert located(word).is_file(), command


@pytest.mark.simulator
@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs_by_itself_and_prints_what_is_shown(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(block, capsys)


def run_python(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    code = compile("\n" * block.line + block.text, block.page, "exec")
    if block.reason is not None:
        return
    with patch.dict(MODELS):
        names = {"__name__": "block"}
        exec(code, names)
    assert names.get("status", 0) == 0
    if block.shown:
        printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert printed == [line.rstrip() for line in block.shown.splitlines()]


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_recipes_are_understood(block):
    assert training_options(loads(block.text))


def test_each_key_that_a_page_names_exists():
    keys = {key.name for key in documentation()}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    named = re.compile(rf"`((?:{'|'.join(sections)})\.[a-z_]+)(?=[`:= ,.])")
    pages = {page: page.read_text(encoding="utf-8") for page in PAGES}
    found = {(str(page), key) for page, text in pages.items() for key in named.findall(text)}
    assert len(found) > 100
    files = {"md", "yaml", "jsonl", "py"}
    assert not {(p, k) for p, k in found if k not in keys and k.rpartition(".")[2] not in files}


def test_each_test_and_benchmark_that_a_page_names_exists():
    named = re.compile(r"\b((?:tests|benchmarks)/[\w/]+\.py)\b")
    found = {(str(page), path) for page in PAGES for path in named.findall(page.read_text("utf-8"))}
    assert len(found) > 30
    assert not {(page, path) for page, path in found if not Path(path).exists()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the quickstart has run, for one epoch."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert main(QUICKSTART.split()) == 0
    return folder


def run(command: str, folder: Path, patched: pytest.MonkeyPatch) -> None:
    """Run a command of a page in ``folder``, or where an earlier ``cd`` of its block led."""
    arguments = arguments_of(command)
    words = shlex.split(command)
    if arguments == ["train", "planned.yaml"]:  # needs ImageNet
        assert load("planned.yaml").ipu.splits
    elif arguments is not None:
        typed = command.partition("ipu-proxynorm ")[2]
        for start, more in SHORTER.items():
            if typed.startswith(start):
                arguments += more.split()
        assert main(arguments) == 0, command
    elif words[:4] == [".venv/bin/python", "-m", "pip", "install"]:  # the test environment has them
        assert all(importlib.metadata.version(name) for name in words[4:])
    elif words[0].rpartition("/")[2] == "python":
        patched.setattr(sys, "argv", words[1:])
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    elif words[0] == "cd":
        patched.chdir(words[1])
    elif words[0] == "make":  # CI runs `make test`, which takes minutes
        assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE), command
    elif words[0] == ".venv/bin/tensorboard":  # serves until it is stopped
        assert importlib.util.find_spec("tensorboard") is not None
        assert list(folder.glob(f"{words[-1]}/*/**/events.out.*"))
    else:
        raise AssertionError(f"{command}: nothing runs it; mark it, or say here how it is run")


ROOT = Path.cwd()
MAKEFILE = Path("Makefile").read_text(encoding="utf-8")


@pytest.mark.simulator
@pytest.mark.parametrize(
    "block", [b for b in CONSOLE if b.reason is None and "photos.onnx" not in b.text], ids=str
)
def test_commands_run(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for command in commands_of(block):
        run(command, folder, monkeypatch)


@pytest.mark.simulator
def test_a_folder_of_photographs_becomes_onnx_with_the_same_answers(folder, monkeypatch, capsys):
    (walk,) = [b for b in CONSOLE if "export runs/photos photos.onnx" in b.text and not b.reason]
    monkeypatch.chdir(folder)
    for command in commands_of(walk):
        capsys.readouterr()
        run(command, folder, monkeypatch)
        printed = capsys.readouterr().out
        if " predict " in command:
            names = [line.split(": ")[1].split()[0] for line in printed.splitlines()]
            assert names == ["flower", "china"]
            assert all(f": {name} " in walk.text for name in names)
    assert "checked: onnxruntime gives the run's logits" in printed
    run_python(ONNX, capsys)
