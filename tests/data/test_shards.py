"""WebDataset shards: the images and classes that the library itself gives, in any order."""

import io
import sys
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.data import create_data, described_data, digest, training_loader
from ipu_proxynorm.data.labels import numbered
from ipu_proxynorm.data.part import Part
from ipu_proxynorm.errors import UserError

SIZE = 12


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, samples):
    """Write a shard with Python's own tar writer: [(key, {ending: bytes})]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples:
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def samples(start, count, classes=3, label=str):
    return [
        (f"n{i:04}", {"cls": label(i % classes).encode(), "json": b"{}", "png": png(i)})
        for i in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        write(folder / f"photos-train-{number:03}.tar", samples(20 * number, 20))
    write(folder / "photos-validation-000.tar", samples(100, 7))
    (folder / "classes.txt").write_text("cat\ndog\nox\n")
    return folder


def create(path, **options):
    return create_data("webdataset", str(path), image_size=SIZE, augment="none", **options)


def test_images_and_classes_are_those_that_the_library_reads(shards):
    data = create(shards)
    assert (data.sizes(), data.num_classes, data.classes) == ((60, 7), 3, ("cat", "dog", "ox"))
    urls = [str(path) for path in sorted(shards.glob("*-train-*.tar"))]
    theirs = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("png", "cls")
    count = 0
    for (image, label), (pixels, their_label) in zip(data.train, theirs):
        assert torch.equal(image, torch.from_numpy(np.array(pixels)).permute(2, 0, 1))
        assert label == their_label
        count += 1
    assert count == 60
    assert data.train.images.name(21) == f"{shards}/photos-train-001.tar:n0021.png"


def test_order_is_a_function_of_seed_and_epoch_and_each_process_has_its_part(shards):
    data = create(shards)

    def labels(processes, process, call=0, workers=0, where=data):
        options = poptorch.Options()
        options.Training.gradientAccumulation(2)
        options.replicationFactor(4 // processes)
        options.Distributed.configureProcessId(process, processes)
        loader = training_loader(where.train, options, 1, workers, seed=5, epoch=2, call=call)
        return [batch[0].flatten(1).sum(1).tolist() for batch in loader]

    whole = labels(1, 0)
    assert len(whole) == 7
    assert labels(1, 0, call=3) == whole[3:]  # resumed in the middle of an epoch
    assert labels(1, 0, workers=2) == whole
    parts = [labels(2, process) for process in (0, 1)]
    for batch, first, second in zip(whole, *parts):  # [accumulation step][replica]
        assert batch == first[:2] + second[:2] + first[2:] + second[2:]
    assert len({value for batch in whole for value in batch}) == 56


def test_folders_of_parts_names_for_labels_and_another_ending(tmp_path, shards):
    names = ["ape", "bee", "cow"]
    named = [
        (key, {"kind.txt": names[int(members["cls"])].encode() + b"\n", "JPG": members["png"]})
        for key, members in samples(0, 9)
    ]
    write(tmp_path / "train/b.tar", named[5:])
    write(tmp_path / "train/a.tar", named[:5])
    write(tmp_path / "test/a.tar", named[:3])
    data = create(tmp_path, label="kind.txt")
    assert (data.classes, data.sizes()) == (tuple(names), (9, 3))
    assert [label for _, label in data.train] == [0, 1, 2] * 3
    assert described_data("webdataset", str(tmp_path), 32, "kind.txt").num_classes == 3
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert digest(create(moved, label="kind.txt")) == digest(data)
    assert digest(create(shards)) != digest(data)
    moved.rename(tmp_path)


def test_a_part_of_the_images(shards):
    whole, part = create(shards), create(shards, part=Part(train_images=12, held_out=6))
    assert part.sizes() == (6, 6)
    for number, (image, label) in enumerate(part.validation, 6):  # the third and fourth of each
        assert torch.equal(image, whole.train[number][0])
        assert label == number % 3


def test_a_damaged_image_is_left_out_by_name(tmp_path):
    write(tmp_path / "train/a.tar", [*samples(0, 3), ("bad", {"cls": b"0", "png": png(1)[:80]})])
    write(tmp_path / "val/a.tar", samples(0, 3))
    data = create(tmp_path)
    assert len(list(data.train)) == 4
    ((name, reason),) = data.train.left_out()
    assert name == f"{tmp_path}/train/a.tar:bad.png"
    assert reason.sentence == "is damaged"


def cut(path):
    path.write_bytes(path.read_bytes()[:-11000])


def overwritten(path):
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        header = archive.getmembers()[9].offset
    content[header + 100 : header + 150] = b"x" * 50
    path.write_bytes(bytes(content))


def no_tar(path):
    path.write_bytes(b"<html>" * 500)


@pytest.mark.parametrize("damage", [cut, overwritten, no_tar])
def test_a_damaged_shard_is_refused_before_anything_is_learned(tmp_path, damage):
    write(tmp_path / "val/a.tar", samples(0, 3))
    damage(write(tmp_path / "train/a.tar", samples(0, 9)))
    with pytest.raises(UserError, match=r"train/a.tar' is damaged or no tar archive .*fetch it"):
        create(tmp_path)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ([("a", {"cls": b"0"})], "sample 'a' has .cls; expected one image and its class in .cls"),
        ([("a", {"png": b"", "txt": b"0"})], "sample 'a' has .png, .txt; expected one image and"),
        ([("a", {"cls": b"0", "png": b"", "jpg": b""})], "'a' has .cls, .png, .jpg; expected one"),
        ([*samples(0, 2, 2), *samples(0, 2, 2)], None),
        ([("a", {"cls": b"0", "png": b""}), ("b", {"cls": b"2", "png": b""})], "class '2'.*gaps"),
        ([("a", {"cls": b"\xff", "png": b""})], "is damaged or no tar archive"),
    ],
)
def test_what_a_sample_lacks_is_said(tmp_path, train, words):
    write(tmp_path / "train/a.tar", train)
    write(tmp_path / "val/a.tar", samples(0, 2, 2))
    if words is None:  # keys need not differ, as long as samples lie apart
        assert create(tmp_path).sizes() == (4, 2)
        return
    with pytest.raises(UserError, match=words) as error:
        create(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_and_compressed_shards(tmp_path, shards, monkeypatch):
    for path, words in (
        ("/nowhere", "no such file or folder; webdataset expects a folder of shards"),
        (None, "data.path is not set: webdataset expects"),
        (tmp_path, "no shard of 'train' in it"),
    ):
        with pytest.raises(UserError, match=words):
            create_data("webdataset", None if path is None else str(path))
    (tmp_path / "a-train-0.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"'a-train-0.tar.gz' is compressed.*gunzip"):
        create(tmp_path)
    with pytest.raises(UserError, match=r"data.label=cls: digits has none; it is of webdataset"):
        create_data("digits", label="cls")
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UserError, match=r"webdataset needs the package.*pip install .*webdataset"):
        create(shards)


def test_classes_are_numbers_from_0_or_names():
    assert numbered((["1", "0", "01"], ["0"]), (), "x") == (["0", "1"], ([1, 0, 1], [0]))
    assert numbered((["2"], ["0"]), ("a", "b", "c"), "x") == (["a", "b", "c"], ([2], [0]))
    assert numbered((["b", "a"], ["b"]), (), "x") == (["a", "b"], ([1, 0], [1]))
    assert numbered((["b"], ["b"]), ("b", "a"), "x") == (["b", "a"], ([0], [0]))
    with pytest.raises(UserError, match="x: a validation sample is of class 'c'; expected one of"):
        numbered((["b"], ["c"]), (), "x")
    with pytest.raises(UserError, match="x: a training sample is of class '-1'"):
        numbered((["0", "-1"], ["0"]), ("a",), "x")
