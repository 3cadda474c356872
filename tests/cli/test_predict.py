"""From a folder of photographs to predictions, and to ONNX and TorchScript: the same answers."""

import csv
import io
import json
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from PIL import Image

from ipu_proxynorm.cli import main
from ipu_proxynorm.training.predict import image_paths, load_predictor, read_image

COLOURS = {"blue": (20, 40, 200), "green": (30, 180, 40), "red": (210, 30, 20)}


def photograph(path, colour, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 20, (40, 52, 3))
    Image.fromarray((noise + colour).clip(0, 255).astype(np.uint8)).save(path, quality=95)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of photographs and the run that learned to tell them."""
    root = tmp_path_factory.mktemp("predict")
    for part, count in (("train", 16), ("val", 4)):
        for number, (name, colour) in enumerate(COLOURS.items()):
            for i in range(count):
                photograph(root / "photos" / part / name / f"{i}.jpg", colour, 100 * number + i)
    status = main(
        [
            *("train", "quickstart", "name=photos", f"runs={root / 'runs'}"),
            *("data.name=image_folder", f"data.path={root / 'photos'}", "data.image_size=16"),
            *("model.name=resnetv2_8", "ipu.splits=[]", "ipu.gradient_accumulation=1"),
            *("ipu.micro_batch_size=8", "training.epochs=3"),
        ]
    )
    assert status == 0
    return root


def predicted(capsys, *arguments):
    capsys.readouterr()
    status = main(["predict", *map(str, arguments)])
    return status, capsys.readouterr()


def test_photographs_are_named(trained, capsys):
    status, printed = predicted(capsys, trained / "runs/photos", trained / "photos/val", "--top=2")
    lines = printed.out.splitlines()
    assert (status, len(lines)) == (0, 12)
    for line in lines:
        assert f"/{line.split(': ')[1].split()[0]}/" in line  # its folder's name comes first
        assert line.count("%") == 2


def test_csv_and_json(trained, capsys):
    images = [trained / "photos/val/red/0.jpg", trained / "photos/val/blue/1.jpg"]
    _, printed = predicted(capsys, trained / "runs/photos/best.pt", *images, "--format=csv")
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [(row["rank"], row["class"]) for row in rows[::3]] == [("1", "red"), ("1", "blue")]
    assert sum(float(row["probability"]) for row in rows[:3]) == pytest.approx(1, abs=1e-5)
    _, printed = predicted(capsys, trained / "runs/photos", *images, "--format=json", "--batch=1")
    found = json.loads(printed.out)
    assert [entry["image"] for entry in found] == list(map(str, images))
    assert [entry["classes"][0]["class"] for entry in found] == ["red", "blue"]


def test_images_are_given_to_the_network_as_in_validation(trained):
    from ipu_proxynorm.data import create_data

    data = create_data("image_folder", str(trained / "photos"), 16)
    predictor = load_predictor(str(trained / "runs/photos"))
    assert predictor.inputs.classes == data.classes == ("blue", "green", "red")
    assert (predictor.inputs.size, predictor.inputs.resize) == (16, 18)
    paths = image_paths([str(trained / "photos/val")])
    for index, path in enumerate(paths):
        assert torch.equal(read_image(path, predictor.inputs), data.validation[index][0])


@pytest.mark.filterwarnings("ignore")
def test_every_export_says_what_it_needs_and_answers_alike(trained, tmp_path, capsys):
    source = trained / "runs/photos"
    for name in ("net.onnx", "net.torchscript", "weights.safetensors"):
        assert main(["export", str(source), str(tmp_path / name)]) == 0
    printed = capsys.readouterr().out
    assert "checked: TorchScript gives the run's logits" in printed
    predictor = load_predictor(str(source))
    pixels = torch.stack(
        [read_image(p, predictor.inputs) for p in image_paths([str(trained / "photos/val")])]
    )
    with torch.no_grad():
        expected = predictor(pixels)
        again = load_predictor(str(tmp_path / "weights.safetensors"))
        assert torch.equal(again(pixels), expected)
    assert again.inputs == predictor.inputs
    extra = {"inputs.txt": ""}
    scripted = torch.jit.load(str(tmp_path / "net.torchscript"), _extra_files=extra)
    torch.testing.assert_close(scripted(pixels), expected, rtol=1e-4, atol=1e-4)
    model = onnx.load(str(tmp_path / "net.onnx"))
    stated = {prop.key: prop.value for prop in model.metadata_props}
    for described in (extra["inputs.txt"], stated["inputs"]):
        text = described.decode() if isinstance(described, bytes) else described
        assert json.loads(text) == predictor.inputs.values()
    (logits,) = ReferenceEvaluator(model).run(None, {"pixels": pixels.numpy()})
    assert (torch.from_numpy(logits).argmax(1) == expected.argmax(1)).all()
    try:
        import onnxruntime
    except ImportError:
        assert "not checked: onnxruntime is not installed" in printed
        return
    assert "checked: onnxruntime gives the run's logits" in printed
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    (logits,) = session.run(None, {"pixels": pixels.numpy()})
    assert (torch.from_numpy(logits).argmax(1) == expected.argmax(1)).all()


def test_what_cannot_be_predicted_is_said(trained, tmp_path, capsys):
    source, bad = trained / "runs/photos", tmp_path / "bad.png"
    bad.write_text("no image")
    good = trained / "photos/val/red/0.jpg"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        status, printed = predicted(capsys, source, bad, good)
    assert (status, len(printed.out.splitlines())) == (0, 1)
    assert "bad.png' is no image" in printed.err
    (tmp_path / "empty").mkdir()
    torch.save({}, tmp_path / "weights.pt")
    for arguments, words in (
        ((source, bad), "none of the images can be read"),
        ((source, tmp_path / "gone.png"), "no such file or folder"),
        ((source, tmp_path / "empty"), "no image in this folder"),
        ((tmp_path / "norun", good), "no such folder or file"),
        ((tmp_path / "weights.pt", good), "not a checkpoint"),
        ((source, good, "--top=0"), "--top 0: expected an integer from 1 up"),
    ):
        status, printed = predicted(capsys, *arguments)
        assert (status, words in printed.err) == (2, True), printed.err
    for arguments, words in (
        (("a.onnx", "--format=torchscript"), "--format torchscript: OUT"),
        (("a.onnx", "--as=timm"), "--as timm: names weights"),
    ):
        out = tmp_path / arguments[0]
        assert main(["export", str(source), str(out), *arguments[1:]]) == 2
        assert words in capsys.readouterr().err
