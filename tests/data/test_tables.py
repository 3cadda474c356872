"""Hugging Face's data sets, saved or as Parquet: images, classes, and what is missing."""

import importlib.util
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ipu_proxynorm.data import create_data, digest
from ipu_proxynorm.data.part import Part
from ipu_proxynorm.errors import UserError

#: Installed on today's Python alone: on 3.8 it wants other packages older; docs/data.md says so.
needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="the package datasets is not installed"
)
NAMES = ["cat", "dog", "ox"]


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def tables(**more):
    """Return a data set of 12 and 5 images."""
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=NAMES),
            "text": datasets.Value("string"),
        }
    )
    parts = {}
    for name, start, count in (("train", 0, 12), ("validation", 50, 5)):
        numbers = range(start, start + count)
        values = {
            "image": [{"bytes": png(i), "path": None} for i in numbers],
            "label": [i % 3 for i in numbers],
            "text": [NAMES[i % 3] for i in numbers],
        }
        parts[name] = datasets.Dataset.from_dict(values, features=features)
    return datasets.DatasetDict({**parts, **more})


def create(path, **options):
    return create_data("huggingface", str(path), image_size=9, augment="none", **options)


def as_saved(tables, folder):
    tables.save_to_disk(str(folder))


def as_parquet(tables, folder):
    (folder / "data").mkdir(parents=True)
    for name, part in tables.items():
        half = len(part) // 2
        for number, rows in enumerate((range(half), range(half, len(part)))):
            file = folder / "data" / f"{name}-{number:05}-of-00002.parquet"
            part.select(rows).to_parquet(str(file))


@needs_datasets
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [as_saved, as_parquet])
def test_images_and_classes(tmp_path, monkeypatch, write):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tables(), tmp_path / "set")
    data = create(tmp_path / "set")
    assert (data.sizes(), data.classes, data.num_classes) == ((12, 5), tuple(NAMES), 3)
    for index, (image, label) in enumerate(data.train):
        assert torch.equal(image, torch.from_numpy(pixels(index)).permute(2, 0, 1))
        assert label == index % 3
    assert data.validation[1][1] == 51 % 3
    assert data.train.images.source.name(3) == "train[3]"
    named = create(tmp_path / "set", label="text")
    assert (named.classes, named.train[2][1]) == (tuple(NAMES), 2)
    assert digest(named) == digest(data)
    part = create(tmp_path / "set", part=Part(held_out=3))
    assert part.sizes() == (9, 3)
    assert torch.equal(part.validation[0][0], data.train[9][0])


@needs_datasets
@pytest.mark.filterwarnings("ignore")
def test_damage_and_columns(tmp_path):
    import datasets

    whole = tables()
    broken = whole["train"].cast_column("image", datasets.Image(decode=False))
    broken = broken.map(lambda row: {"image": {"bytes": row["image"]["bytes"][:60], "path": None}})
    broken = broken.cast_column("image", datasets.Image())
    as_saved(datasets.DatasetDict(train=broken, test=whole["validation"]), tmp_path / "broken")
    data = create(tmp_path / "broken")
    assert data.train[0][1] == -100
    assert data.train.left_out()[0][0] == "train[0]"
    two = whole.map(lambda row: {"fine": row["label"]})
    two = two.cast_column("fine", datasets.ClassLabel(names=NAMES))
    as_saved(two, tmp_path / "two")
    assert create(tmp_path / "two", label="fine").num_classes == 3
    as_saved(whole.remove_columns("image"), tmp_path / "none")
    as_saved(datasets.DatasetDict(train=whole["train"]), tmp_path / "half")
    for name, label, words in (
        ("two", None, r"has 2 columns of type ClassLabel \(label, fine\); name the column"),
        ("two", "x", "data.label=x: no such column; there are image, label"),
        ("none", None, "has 0 columns of type Image; expected one"),
        ("half", None, "has train; expected train and validation, or test"),
    ):
        with pytest.raises(UserError, match=words):
            create(tmp_path / name, label=label)


@needs_datasets
def test_what_is_no_data_set(tmp_path):
    with pytest.raises(UserError, match="no data set in it; expected a folder that DatasetDict"):
        create(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="cannot be read") as error:
        create(tmp_path)
    assert "\n" not in str(error.value)


def test_the_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets.*pip install .*huggingface"):
        create(tmp_path)
