"""Datasets: the images that the source has, each in one of the two sets."""

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image

from ipu_proxynorm.data import create_data
from ipu_proxynorm.data.datasets import size_of
from ipu_proxynorm.errors import UserError


def samples(dataset):
    return [dataset[i] for i in range(size_of(dataset))]


def test_digits_are_scikit_learns_each_in_one_set():
    data = create_data("digits")
    source = sklearn.datasets.load_digits()
    assert data.sizes() == (1437, 360)
    found = samples(data.train) + samples(data.validation)
    assert {tuple(image.shape) for image, _ in found} == {(1, 8, 8)}
    assert {image.dtype for image, _ in found} == {torch.uint8}
    ours = sorted((int(label), image.numpy().tobytes()) for image, label in found)
    theirs = sorted(
        (int(label), np.round(image / 16 * 255).astype(np.uint8).tobytes())
        for image, label in zip(source.images, source.target)
    )
    assert ours == theirs


def test_digits_are_split_the_same_way_everywhere_and_in_all_classes():
    data, source = create_data("digits"), sklearn.datasets.load_digits()
    labels = [int(label) for _, label in samples(data.validation)]
    assert labels == list(source.target[::5])
    assert min(labels.count(digit) for digit in range(10)) >= 25


def test_the_device_can_bring_digits_to_zero_mean_and_unit_deviation():
    data = create_data("digits")
    pixels = np.stack([image.numpy() for image, _ in samples(data.train)]).astype(np.float64) / 255
    assert data.mean == pytest.approx([pixels.mean()])
    assert data.std == pytest.approx([pixels.std()], rel=1e-4)


def test_digits_can_be_enlarged():
    data = create_data("digits", image_size=32)
    assert data.image_size == (32, 32)
    assert data.train[0][0].shape == (1, 32, 32)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{number}.png")
    return tmp_path


def test_image_folder_gives_uint8_crops_with_the_folders_as_classes(folder):
    data = create_data("image_folder", str(folder), image_size=28)
    assert (data.sizes(), data.num_classes, data.channels) == ((6, 4), 2, 3)
    for dataset in (data.train, data.validation):
        for image, _ in samples(dataset):
            assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 28, 28))
    assert [label for _, label in samples(data.validation)] == [0, 0, 1, 1]


def test_validation_images_are_cropped_at_the_centre(folder):
    path = folder / "val" / "cat" / "0.png"
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[16:48, 16:48] = 255
    Image.fromarray(pixels).save(path)
    image, _ = create_data("image_folder", str(folder), image_size=56).validation[0]
    rows = (image[0] > 127).any(dim=1).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (12, 43)  # 64 pixels kept, 4 cropped at each side


def test_wrong_datasets_are_refused_with_the_key(folder, tmp_path):
    with pytest.raises(UserError, match=r"data.name.*'digit' is unknown.*'digits'"):
        create_data("digit")
    with pytest.raises(UserError, match=r"data.path='/nowhere'.*train/<class>/"):
        create_data("image_folder", "/nowhere")
    with pytest.raises(UserError, match=r"data.path is not set"):
        create_data("image_folder")
    with pytest.raises(UserError, match=r"data.path='x'.*leave data.path out"):
        create_data("digits", "x")
    (folder / "val" / "cat").rename(folder / "val" / "cow")
    with pytest.raises(UserError, match=r"same classes.*cat, cow"):
        create_data("image_folder", str(folder))
    empty = tmp_path / "empty"
    (empty / "train").mkdir(parents=True)
    (empty / "val").mkdir()
    with pytest.raises(UserError, match=r"data.path=.*class"):
        create_data("image_folder", str(empty))
