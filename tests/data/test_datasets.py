"""Datasets: the images that the source has, each in one of the two sets."""

import pickle

import numpy as np
import pytest
import sklearn.datasets
import torch
import torchvision
from PIL import Image

from ipu_proxynorm.data import create_data
from ipu_proxynorm.data.image_data import size_of
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


def test_cifar_from_torchvisions_folder(tmp_path, monkeypatch):
    # The published files cannot be had here: their layout, with checksums of our own.
    folder = tmp_path / torchvision.datasets.CIFAR10.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    sources = {}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]:
        rows = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        sources[name] = {"data": rows, "labels": [n % 10 for n in range(4)], "label_names": []}
        (folder / name).write_bytes(pickle.dumps(sources[name]))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = create_data("cifar10", str(tmp_path), augment="none")
    assert (data.sizes(), data.num_classes) == ((20, 4), 10)
    image, label = data.train[5]
    assert image.flatten().tolist() == sources["data_batch_2"]["data"][1].tolist()
    assert label == 1
    (folder / "test_batch").unlink()
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"cifar-10-batches-py/ cannot be read"):
        create_data("cifar10", str(tmp_path))


def test_cifar_100_from_torchvisions_folder(tmp_path, monkeypatch):
    folder = tmp_path / torchvision.datasets.CIFAR100.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    sources = {}
    for name, count in (("train", 6), ("test", 3)):
        rows = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        sources[name] = {"data": rows, "fine_labels": [99 - n for n in range(count)]}
        (folder / name).write_bytes(pickle.dumps(sources[name]))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": []}))
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = create_data("cifar100", str(tmp_path), augment="none")
    assert (data.sizes(), data.num_classes, data.image_size) == ((6, 3), 100, (32, 32))
    for name, dataset in (("train", data.train), ("test", data.validation)):
        found = samples(dataset)
        assert [label for _, label in found] == sources[name]["fine_labels"]
        rows = torch.stack([image.flatten() for image, _ in found])
        assert torch.equal(rows, torch.from_numpy(sources[name]["data"]))


def test_imagenet_as_torchvision_unpacks_it(folder):
    # torchvision's ImageNet: <split>/<wnid>/<file>, and what its own parser keeps beside them.
    for part in ("train", "val"):
        for name, wnid in (("cat", "n02123045"), ("dog", "n01440764")):
            (folder / part / name).rename(folder / part / wnid)
    classes = {"n02123045": ("tabby",), "n01440764": ("tench",)}
    torch.save((classes, []), folder / "meta.bin")
    data = create_data("image_folder", str(folder), image_size=40, augment="none")
    for split, dataset in (("train", data.train), ("val", data.validation)):
        theirs = torchvision.datasets.ImageNet(str(folder), split)
        assert [label for _, label in samples(dataset)] == theirs.targets
        for (image, _), (expected, _) in zip(samples(dataset), theirs):
            expected = torchvision.transforms.functional.center_crop(expected, [40, 40])
            assert torch.equal(image, torchvision.transforms.functional.pil_to_tensor(expected))


def test_synthetic_images_are_noise_of_the_size_asked_for():
    data = create_data("synthetic", image_size=64, seed=3)
    assert (data.sizes(), data.num_classes, data.image_size) == ((1024, 256), 10, (64, 64))
    pixels = torch.stack([data.train[i][0] for i in range(64)]).double() / 255
    assert float(pixels.mean()) == pytest.approx(data.mean[0], abs=0.01)
    assert float(pixels.std()) == pytest.approx(data.std[0], abs=0.01)
    assert torch.equal(
        create_data("synthetic", image_size=64, seed=3).train[9][0], data.train[9][0]
    )
