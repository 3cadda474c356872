"""Importing: what the package needs, and which backend it finds."""

import os
import subprocess
import sys

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


def test_an_unknown_backend_is_refused():
    status, _, error = python(CODE, IPU_PROXYNORM_BACKEND="ipu")
    assert status == 1
    assert "IPU_PROXYNORM_BACKEND: backend 'ipu' is unknown" in error
    assert "auto, sdk, simulator" in error


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["validate", "--help"]])
def test_help(command):
    done = subprocess.run(
        [sys.executable, "run_ipu.py", *command], capture_output=True, text=True, check=True
    )
    assert "usage: run_ipu.py" in done.stdout
