"""A trained network as one file that other programs run: ONNX, or TorchScript."""

from __future__ import annotations

import importlib
import io
import warnings
from pathlib import Path
from typing import Any, Dict, Mapping

import torch
from torch import Tensor

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.whole import replacing
from ipu_proxynorm.training.predict import Predictor

#: Kinds of file by how their names end; state dicts of torch and safetensors are weights alone.
GRAPHS = {".onnx": "onnx", ".torchscript": "torchscript", ".ts": "torchscript"}
OPSET = 17


def example(predictor: Predictor, count: int = 2) -> Tensor:
    """Return images of noise, uint8 ``(count, C, size, size)``, the same each time."""
    inputs = predictor.inputs
    shape = (count, inputs.channels, inputs.size, inputs.size)
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)


def write_graph(path: Path, kind: str, predictor: Predictor, about: Mapping[str, str]) -> str:
    """Write a network from pixels, uint8 ``(N, C, size, size)``, to logits; return how checked.

    Args:
        path: the file; it is whole or not there.
        kind: ``onnx`` or ``torchscript``.
        predictor: the network, with what it is given and answers.
        about: what to know of it, kept within the file: names of classes, sizes, statistics.

    Raises:
        UserError: a library is missing, the file cannot be written, or what it computes is not
            what the network computes.
    """
    content = _onnx(predictor, about) if kind == "onnx" else _torchscript(predictor, about)
    checked = _check_onnx(content, predictor) if kind == "onnx" else _check(content, predictor)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write(content)
    except OSError as error:
        raise UserError(f"OUT {str(path)!r} cannot be written ({error.strerror})") from error
    return checked


def _library(name: str, why: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed, which {why}: pip install {name}") from error


def _onnx(predictor: Predictor, about: Mapping[str, str]) -> bytes:
    onnx = _library("onnx", "--format onnx needs")
    file: Any = io.BytesIO()
    # The exporter that needs nothing but torch; later versions have another by default.
    legacy: Dict[str, Any] = {} if torch.__version__.startswith("2.0.") else {"dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            predictor,
            (example(predictor),),
            file,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
            **legacy,
        )
    model = onnx.load_from_string(file.getvalue())
    onnx.helper.set_model_props(model, dict(about))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _torchscript(predictor: Predictor, about: Mapping[str, str]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of shapes checked while tracing, and of deprecation
        traced = torch.jit.trace(predictor, example(predictor), check_trace=False)
        torch.jit.save(traced, file, _extra_files={f"{k}.txt": v for k, v in about.items()})
    return file.getvalue()


def _check(content: bytes, predictor: Predictor) -> str:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(io.BytesIO(content))
        for count in (1, 3):  # neither is what was traced
            images = example(predictor, count)
            _compare(loaded(images), predictor(images), "torch")
    return "checked: TorchScript gives the run's logits"


def _check_onnx(content: bytes, predictor: Predictor) -> str:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return "not checked: onnxruntime is not installed"
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = example(predictor, count)
        (logits,) = session.run(["logits"], {"pixels": images.numpy()})
        with torch.no_grad():
            _compare(torch.from_numpy(logits), predictor(images), "onnxruntime")
    return "checked: onnxruntime gives the run's logits"


def _compare(found: Tensor, expected: Tensor, program: str) -> None:
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not difference < 1e-3:
        raise UserError(
            f"{program} computes other logits than the run, by {difference:.1e} of the largest; "
            f"nothing is written"
        )
