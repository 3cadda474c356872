"""Importing: what the package needs, and which backend it finds."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def test_the_package_norm_and_simulator_need_torch_and_numpy_only():
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'poptorch', 'torchvision', 'omegaconf', 'yaml',\n"
        "                                      'sklearn', 'rich', 'tensorboard', 'scipy'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import ipu_proxynorm, ipu_proxynorm.norm, ipu_proxynorm.simulator, ipu_proxynorm.models\n"
        "from ipu_proxynorm.backend import poptorch\n"
        "ipu_proxynorm.models.create_model('resnetv2_8', norm='ln+pn')\n"
        "print(poptorch.__name__)"
    )
    assert python(code) == (0, "ipu_proxynorm.simulator", "")


def test_commands_start_without_what_takes_a_second_to_import():
    code = (
        "import sys; from ipu_proxynorm.cli.main import main\n"
        "print(main(['train', '--keys', 'training.epochs']) or 0)\n"
        "print({'torchvision', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    status, printed, _ = python(code)
    assert (status, printed.splitlines()[-2:]) == (0, ["0", "set()"])


CODE = "from ipu_proxynorm import backend; print(backend.SIMULATED, backend.poptorch.__name__)"


def test_the_sdk_is_used_where_it_is(tmp_path):
    (tmp_path / "poptorch.py").write_text("")
    assert python(CODE, PYTHONPATH=f"{tmp_path}:.")[1] == "False poptorch"
    forced = python(CODE, PYTHONPATH=f"{tmp_path}:.", IPU_PROXYNORM_BACKEND="simulator")
    assert forced[1] == "True ipu_proxynorm.simulator"


def test_a_broken_sdk_falls_back_and_keeps_the_reason(tmp_path):
    (tmp_path / "poptorch.py").write_text("raise ImportError('libpoplar.so: not found')")
    code = f"{CODE}; print(backend.IMPORT_ERROR)"
    status, printed, _ = python(code, PYTHONPATH=f"{tmp_path}:.")
    assert (status, printed) == (0, "True ipu_proxynorm.simulator\nlibpoplar.so: not found")
    status, _, error = python(CODE, PYTHONPATH=f"{tmp_path}:.", IPU_PROXYNORM_BACKEND="sdk")
    assert status == 1
    assert "libpoplar.so: not found" in error


def test_a_folder_named_poptorch_is_no_sdk(tmp_path):
    (tmp_path / "poptorch").mkdir()
    code = f"{CODE}; print(backend.IMPORT_ERROR)"
    status, printed, _ = python(code, PYTHONPATH=f"{tmp_path}:.")
    reason = f"'poptorch' is a folder without a module: {tmp_path / 'poptorch'}"
    assert (status, printed) == (0, f"True ipu_proxynorm.simulator\n{reason}")


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ({"IPU_PROXYNORM_BACKEND": "sdk"}, "enable the Poplar SDK"),
        ({"IPU_PROXYNORM_BACKEND": "gpu"}, "expected one of: auto, sdk, simulator"),
        ({"POPTORCH_LOG_LEVEL": "LOUD"}, "Valid values are DEBUG, ERR"),
    ],
)
@pytest.mark.simulator
def test_a_backend_that_cannot_be_loaded_is_one_sentence(variable, words):
    (name, value) = next(iter(variable.items()))
    done = subprocess.run(
        [sys.executable, "run_ipu.py", "doctor"],
        env={**os.environ, "IPU_PROXYNORM_BACKEND": "simulator", **variable},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"run_ipu.py: error: {name}" in done.stderr
    assert value in done.stderr
    assert words in done.stderr


def test_an_unknown_backend_is_refused():
    status, _, error = python(CODE, IPU_PROXYNORM_BACKEND="ipu")
    assert status == 1
    assert "IPU_PROXYNORM_BACKEND: backend 'ipu' is unknown" in error
    assert "auto, sdk, simulator" in error


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["validate", "--help"]])
def test_help_also_where_warnings_are_errors(command):
    done = subprocess.run(
        [sys.executable, "-W", "error", "run_ipu.py", *command],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: run_ipu.py" in done.stdout


ROOT = Path(__file__).resolve().parents[1]


def test_the_program_is_named_as_it_was_started(tmp_path):
    for command, name in (
        (["-m", "ipu_proxynorm"], "python -m ipu_proxynorm"),
        ([str(ROOT / "run_ipu.py")], "run_ipu.py"),
    ):
        done = subprocess.run(
            [sys.executable, *command, "train", "none.yaml"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": beside(str(ROOT))},
        )
        assert done.returncode == 2
        assert done.stderr.startswith(f"{name}: error: CONFIG 'none.yaml' cannot be read"), name


def beside(*paths):
    return os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])


def test_recipes_are_found_by_name_beside_a_users_own_files(tmp_path):
    for name in ("models.py", "run_ipu.py"):
        (tmp_path / name).write_text("raise ImportError('not yours')")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("name: mine\n")
    code = (
        "from ipu_proxynorm.config import load\n"
        "from ipu_proxynorm.models import create_model\n"
        "print(load('configs/quickstart.yaml').name, load('quickstart').name,\n"
        "      load('imagenet/resnetv2_50_bn.yaml').model.norm)\n"
        "create_model('resnetv2_8', norm='ln+pn')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": beside(str(ROOT))},
    )
    assert (done.stdout, done.stderr) == ("quickstart quickstart bn\n", "")


def test_the_wheel_has_one_package_with_networks_and_recipes(tmp_path):
    source = tmp_path / "source"  # what setuptools builds stays out of the checkout
    source.mkdir()
    for name in ("ipu_proxynorm", "models", "configs"):
        shutil.copytree(
            ROOT / name,
            source / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entries,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "ipu-proxynorm = ipu_proxynorm.__main__:run" in archive.read(entries).decode()
    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"ipu_proxynorm"}
    for folder in ("configs", "models", "ipu_proxynorm"):
        inside = folder if folder == "ipu_proxynorm" else f"ipu_proxynorm/{folder}"
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".yaml", ".html", ".txt", ".json", ".typed"):
                assert f"{inside}/{file.relative_to(ROOT / folder).as_posix()}" in names
