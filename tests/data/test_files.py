"""Image files in folders and archives, good and bad."""

import os
import random
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets.folder import IMG_EXTENSIONS

from ipu_proxynorm.data import IGNORED, create_data
from ipu_proxynorm.data.decoding import EXTENSIONS, Reason, Unreadable
from ipu_proxynorm.data.files import Store
from ipu_proxynorm.data.image_set import CachedImages, image_set, sample_at
from ipu_proxynorm.errors import UserError


def test_files_are_images_by_the_endings_that_torchvision_lists():
    assert set(EXTENSIONS) == set(IMG_EXTENSIONS)


def write_images(root, train=6, size=(32, 32)):
    """Return a folder with two classes, PNG files of noise, `test` for validation."""
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("test", 2)):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.png")
    return root


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images")


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_cifar_from_files_and_from_a_zip_archive_of_them(folder):
    archive = shutil.make_archive(str(folder.parent / "images"), "zip", folder)
    for path in (str(folder), archive):
        data = create_data("cifar10", path, augment="none")
        assert (data.sizes(), data.num_classes, data.image_size) == ((12, 4), 2, (32, 32))
        for _ in range(2):  # decoded, then from memory
            image, label = data.train[7]
            assert torch.equal(image, pixels(folder / "train" / "dog" / "1.png"))
            assert label == 1


def test_training_images_change_from_epoch_to_epoch_and_validation_images_do_not(folder):
    data = create_data("cifar10", str(folder))
    subset = Subset(data.train, [3, 4])
    first = sample_at(subset, 1, 1)[0]
    assert torch.equal(first, data.train.at(1, 4)[0])
    assert any(not torch.equal(sample_at(subset, epoch, 1)[0], first) for epoch in (2, 3, 4))
    assert torch.equal(
        sample_at(data.validation, 5, 0)[0], pixels(folder / "test" / "cat" / "0.png")
    )


def test_large_sets_are_decoded_anew_each_time(folder, monkeypatch):
    kept = create_data("cifar10", str(folder)).train.at(1, 2)[0]
    monkeypatch.setattr("ipu_proxynorm.data.image_set.CACHE_BYTES", 100)
    assert_not_kept(folder, kept)


def test_images_are_not_kept_where_shared_memory_is_short(folder, monkeypatch):
    kept = create_data("cifar10", str(folder)).train.at(1, 2)[0]
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    assert_not_kept(folder, kept)


def assert_not_kept(folder, kept):
    data = create_data("cifar10", str(folder))
    assert isinstance(data.train.images, CachedImages)
    assert data.train.images._cache is None
    assert torch.equal(data.train.at(1, 2)[0], kept)


def test_images_of_other_sizes_are_resized(tmp_path):
    data = create_data("cifar10", str(write_images(tmp_path, size=(50, 40))), augment="none")
    assert tuple(data.train[0][0].shape) == (3, 32, 32)
    sizes = create_data("image_folder", str(tmp_path), image_size=24, eval_image_size=28)
    assert tuple(sizes.train[0][0].shape) == (3, 24, 24)
    assert tuple(sizes.validation[0][0].shape) == (3, 28, 28)


def test_damaged_files_are_replaced_in_training_left_out_in_validation_and_named(folder):
    broken = folder / "train" / "cat" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (folder / "test" / "dog" / "0.png").write_text("no image")
    (folder / "train" / "dog" / "notes.txt").write_text("no image either")
    data = create_data("cifar10", str(folder), augment="none")
    image, label = data.train[2]
    assert torch.equal(image, pixels(folder / "train" / "cat" / "3.png"))
    assert label == 0
    assert image_set(Subset(data.train, [0])).left_out() == [(str(broken), Reason.DAMAGED)]
    assert data.train.strangers == ("train/dog/notes.txt",)
    image, label = data.validation[2]
    assert (int(image.sum()), label) == (0, IGNORED)
    assert data.validation.left_out() == [(str(folder / "test" / "dog" / "0.png"), Reason.NO_IMAGE)]


def test_files_lie_at_any_depth_and_hidden_ones_are_left_out(folder):
    names = [file.name for file in (folder / "train" / "cat").iterdir()]
    (folder / "train" / "cat" / "images" / "more").mkdir(parents=True)
    for name in names[:3]:
        (folder / "train" / "cat" / name).rename(folder / "train/cat/images/more" / name)
    for hidden in ("train/.cache", "train/dog/.thumbnails"):
        (folder / hidden).mkdir()
        (folder / hidden / "0.png").write_text("no image")
    archive = shutil.make_archive(str(folder.parent / "images"), "zip", folder)
    for path in (str(folder), archive):
        data = create_data("cifar10", path, augment="none")
        assert (data.sizes(), data.num_classes) == ((12, 4), 2)
        assert [data.train[index][1] for index in range(12)] == 6 * [0] + 6 * [1]
        assert data.train.left_out() == []


@pytest.mark.parametrize(
    "kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damage_of_any_kind_to_an_archive_is_an_unreadable_image(folder, kind):
    archive = folder.parent / "images.zip"
    with zipfile.ZipFile(archive, "w", kind) as written:
        for file in sorted(folder.glob("t*/*/*.png")):
            written.write(file, str(file.relative_to(folder)))
    content, chance, unreadable = archive.read_bytes(), random.Random(0), 0
    for _ in range(50):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        archive.write_bytes(damaged)
        try:
            data = create_data("cifar10", str(archive), augment="none")
        except UserError:  # the archive's own table of contents
            continue
        unreadable += [data.validation[index][1] for index in range(4)].count(IGNORED)
    assert unreadable > 5


def test_wrong_paths_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"data.path='/nowhere'.*cifar-10-batches-py"):
        create_data("cifar10", "/nowhere")
    (tmp_path / "not.zip").write_text("no archive")
    with pytest.raises(UserError, match=r"not.zip': not a zip archive"):
        create_data("cifar100", str(tmp_path / "not.zip"))
    shutil.rmtree(folder / "test" / "dog")
    (folder / "test" / "dog").mkdir()
    for _ in range(2):  # an empty folder, then one without an image; both in an archive, too
        archive = shutil.make_archive(str(tmp_path / "empty"), "zip", folder)
        for path in (str(folder), archive):
            with pytest.raises(UserError, match=r"no image in 'test/dog'"):
                create_data("cifar10", path)
        (folder / "test" / "dog" / "x.txt").write_text("no image")
    shutil.rmtree(folder / "test" / "dog")
    with pytest.raises(UserError, match=r"same classes.*dog"):
        create_data("cifar10", str(folder))
    with pytest.raises(UserError, match=r"data.augment.*'flip' is unknown.*crop"):
        create_data("digits", augment="flip")


def test_an_image_that_a_pipe_has_replaced_since_is_gone_and_not_waited_for(folder):
    store = Store(str(folder))
    path = folder / "train" / "cat" / "0.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Unreadable, match="no file any more") as error:
        store.read("train/cat/0.png")
    assert error.value.reason == Reason.VANISHED
