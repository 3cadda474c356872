"""Checkpoints: what is read is what was written, whatever happened to the file in between."""

import os
import pickle
import random
import zipfile

import pytest
import torch

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ipu_proxynorm.files.seal import seal

CHECKPOINT = Checkpoint(
    epoch=3,
    validation_accuracy=0.5,
    config="name: trial\n",
    weights={"w": torch.arange(4096.0), "n": torch.tensor(7)},
)


@pytest.fixture
def path(tmp_path):
    save_checkpoint(tmp_path / "last.pt", CHECKPOINT)
    return tmp_path / "last.pt"


def test_round_trip(path):
    read = load_checkpoint(path)
    assert (read.epoch, read.validation_accuracy, read.config) == (3, 0.5, "name: trial\n")
    for name, tensor in CHECKPOINT.weights.items():
        torch.testing.assert_close(read.weights[name], tensor, rtol=0, atol=0)
    assert os.listdir(path.parent) == ["last.pt"]


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=r"last.pt' is truncated.*another checkpoint"):
        load_checkpoint(path)


def test_any_flipped_bit(path):
    # Between the archive's parts and in names that are UTF-8, too, where zip has no checksums.
    content = path.read_bytes()
    chance = random.Random(0)
    places = [*range(200), *range(len(content) - 400, len(content))]
    places += [chance.randrange(len(content)) for _ in range(200)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last.pt' is .*damaged.*its SHA-256"):
            load_checkpoint(path)


def test_it_stays_a_file_of_torchs(path):
    content = torch.load(path, weights_only=True)["content"]
    torch.testing.assert_close(content["weights"]["w"], torch.arange(4096.0), rtol=0, atol=0)
    assert zipfile.ZipFile(path).testzip() is None


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def sealed(value, path):
    with path.open("w+b") as stream:
        torch.save(value, stream)
        seal(stream)


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (torch.save, "is truncated, damaged or not a checkpoint"),
        (lambda value, path: path.write_bytes(pickle.dumps(value)), "or not a checkpoint"),
        (sealed, "which was not executed"),
    ],
)
def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch, save, words):
    monkeypatch.chdir(tmp_path)
    save({"format": 3, "content": Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=rf"bad\.pt' .*{words}"):
        load_checkpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "pwned").exists()


def test_something_else(tmp_path):
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"not a checkpoint .*is not at its end"):
        load_checkpoint(tmp_path / "other.pt")
    sealed({"format": 2}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="expected format 3"):
        load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"none.pt': no such checkpoint; there are other: use one"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "other.pt").unlink()
    with pytest.raises(UserError, match=r"none.pt': no such checkpoint.*train CONFIG"):
        load_checkpoint(tmp_path / "none.pt")


def test_a_failed_write_keeps_the_old_checkpoint(path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        save_checkpoint(path, Checkpoint(4, 0.6, "", {}))
    assert load_checkpoint(path).epoch == 3


def test_what_is_no_file_beside_a_damaged_checkpoint_is_neither_offered_nor_waited_for(path):
    path.write_bytes(b"")
    os.mkfifo(path.with_name("pipe.pt"))
    path.with_name("dangling.pt").symlink_to("nowhere")
    path.with_name("loop.pt").symlink_to("loop.pt")
    path.with_name("folder.pt").mkdir()
    with pytest.raises(UserError, match="use another checkpoint of the run, or train again"):
        load_checkpoint(path)
