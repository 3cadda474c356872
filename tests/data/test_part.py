"""Parts of a data set: the first images of each class, and others held out, each in one place."""

import numpy as np
import pytest
from PIL import Image

from ipu_proxynorm.data import Part, create_data
from ipu_proxynorm.data.image_data import size_of
from ipu_proxynorm.errors import UserError


def samples(dataset):
    return [
        (image.numpy().tobytes(), int(label))
        for image, label in map(dataset.__getitem__, range(size_of(dataset)))
    ]


def first(found, count, classes):
    """Return the first ``count`` of each class, in the order of the set."""
    seen = [0] * classes
    kept = []
    for image, label in found:
        seen[label] += 1
        if seen[label] <= count:
            kept.append((image, label))
    return kept


def test_the_first_of_each_class_train_and_the_last_of_them_are_held_out():
    whole = create_data("digits")
    some = create_data("digits", part=Part(train_images=1000))
    assert samples(some.train) == first(samples(whole.train), 100, 10)
    assert samples(some.validation) == samples(whole.validation)
    held = create_data("digits", part=Part(train_images=1000, held_out=300))
    assert samples(held.train) == first(samples(some.train), 70, 10)
    assert sorted(samples(held.train) + samples(held.validation)) == sorted(samples(some.train))
    assert (held.mean, held.std) == (whole.mean, whole.std)


def test_of_image_files_without_reading_one(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 2)):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{number}.png")

    def named(part):
        data = create_data("cifar10", str(tmp_path), 8, augment="none", part=part)
        for dataset in (data.train, data.validation):
            yield [
                (path.rpartition("/train/")[2], label)
                for path, label in (
                    (dataset.images.name(index), dataset[index][1])
                    for index in range(size_of(dataset))
                )
            ]

    train, held_out = named(Part(train_images=8, held_out=2))
    assert train == [(f"cat/{n}.png", 0) for n in range(3)] + [
        (f"dog/{n}.png", 1) for n in range(3)
    ]
    assert held_out == [("cat/3.png", 0), ("dog/3.png", 1)]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part(train_images=1001), r"data.train_images=1001: expected a multiple of the 10 classes"),
        (Part(train_images=5000), r"at most 1330 \(the smallest class has 133 images\)"),
        (
            Part(train_images=100, held_out=100),
            r"data.held_out=100: that leaves no image of a class",
        ),
        (Part(held_out=7), r"data.held_out=7: expected a multiple"),
    ],
)
def test_what_cannot_be_had_is_refused(part, message):
    with pytest.raises(UserError, match=message):
        create_data("digits", part=part)
