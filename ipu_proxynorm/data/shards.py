"""Images in WebDataset shards: tar archives in which a sample is a few members of one name."""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Pattern, Sequence, Tuple

import numpy as np
from torch import Tensor

from ipu_proxynorm.data.decoding import (
    EXTENSIONS,
    MOST_BYTES,
    Reason,
    Unreadable,
    cannot_read,
    decode,
    opened,
)
from ipu_proxynorm.data.files import Listing
from ipu_proxynorm.data.image_data import IMAGENET, ImageData, Request, image_data
from ipu_proxynorm.data.image_set import ListedImages
from ipu_proxynorm.data.labels import numbered
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.extras import install_command

#: Names of folders, or words in names of shards, of training and of validation.
PARTS = (("train", "training"), ("val", "valid", "validation", "test"))
#: A file beside the shards with the names of the classes, one a line.
CLASSES = "classes.txt"
_EXPECTED = (
    "a folder of shards: train/*.tar and val/*.tar, or *.tar with train and val as words in their "
    "names"
)


class Sample(NamedTuple):
    """Where an image lies: a shard, the first byte of it there, how many; and its class."""

    name: str
    shard: str
    offset: int
    size: int
    label: str


class ShardImages(ListedImages):
    """Images in shards, each read from its place: in any order, by any process.

    Args:
        path: the folder of the shards.
        samples: where the images lie.
        classes: names.
        labels: the class number of each sample.
    """

    def __init__(
        self, path: Path, samples: Sequence[Sample], classes: List[str], labels: List[int]
    ) -> None:
        super().__init__(Listing(classes, [sample.name for sample in samples], labels, []))
        self.path = path
        self.shards = sorted({sample.shard for sample in samples})
        numbers = {shard: number for number, shard in enumerate(self.shards)}
        #: (images, 3): the number of the shard, first byte, bytes.
        self.places = np.array(
            [(numbers[sample.shard], sample.offset, sample.size) for sample in samples], np.int64
        )

    def read(self, index: int) -> Tensor:
        """Return the pixels of one image."""
        shard, offset, size = map(int, self.places[index])
        if size > MOST_BYTES:
            raise Unreadable(f"has {size} bytes; at most {MOST_BYTES}", Reason.TOO_LARGE)
        try:
            with opened(self.path / self.shards[shard]) as file:
                content = _bytes(file.fileno(), offset, size)
        except OSError as error:
            raise cannot_read(error, listed=True) from error
        return decode(content)

    def chosen(self, numbers: Sequence[int]) -> ShardImages:
        """Return the images of these numbers."""
        part = super().chosen(numbers)
        assert isinstance(part, ShardImages)
        part.places = self.places[list(numbers)]
        return part

    def name(self, index: int) -> str:
        """Return the path of the shard, and the member."""
        return str(self.path / self.listing.names[index])


def _bytes(file: int, offset: int, size: int) -> bytes:
    return os.pread(file, size, offset)


def webdataset(request: Request) -> ImageData:
    """Return the RGB images of WebDataset shards below ``path``, 224x224 by default.

    Every sample has an image and, in a member that ends in ``data.label`` (``.cls``), its class: a
    number from 0, or a name. ``classes.txt`` beside the shards names the classes. Crops are those
    of `datasets.image_folder`. Samples are numbered in the order of the names of shards and of
    their places there; which of them a run reads when is the loader's to say.

    Raises:
        UserError: the library is not installed, there are no shards, or one is damaged or has a
            sample without image or class.
    """
    group = _library().group_by_keys
    path = request.place("webdataset", _EXPECTED)
    label = (request.label or "cls").lower().lstrip(".")
    found = [
        [s for shard in shards(path, words) for s in read_shard(path, shard, label, group)]
        for words in PARTS
    ]
    names = path / CLASSES
    classes, numbers = numbered(
        ([sample.label for sample in found[0]], [sample.label for sample in found[1]]),
        names.read_text(encoding="utf-8").splitlines() if names.is_file() else (),
        f"data.path={request.path!r}",
    )
    images = (
        ShardImages(path, found[0], classes, numbers[0]),
        ShardImages(path, found[1], classes, numbers[1]),
    )
    return image_data(
        "webdataset", images, len(classes), request, 224, "resized", IMAGENET, names=classes
    )


def _library() -> Any:
    """Return the module of the library that knows which members are a sample.

    Raises:
        UserError: it is not installed.
    """
    try:
        import webdataset.tariterators
    except ImportError as error:
        raise UserError(
            f"data.name=webdataset needs the package webdataset ({error}): "
            f"{install_command('webdataset')}"
        ) from error
    return webdataset.tariterators


def as_word(words: Sequence[str]) -> Pattern[str]:
    """Return what finds one of these as a word in a file's name, as group 1."""
    return re.compile(rf"(?:^|[^a-z])({'|'.join(words)})(?:[^a-z]|$)")


def shards(path: Path, words: Sequence[str]) -> List[Path]:
    """Return the shards of a part, by name.

    Raises:
        UserError: there is none, or one is compressed.
    """
    word = as_word(words)
    folders = [path / name for name in words if (path / name).is_dir()]
    files = sorted(folders[0].iterdir()) if folders else sorted(path.glob("*"))
    named = [f for f in files if folders or word.search(f.name.lower())]
    packed = [file.name for file in named if re.search(r"\.(tgz|tar\.\w+)$", file.name.lower())]
    if packed:
        raise UserError(
            f"data.path={str(path)!r}: {packed[0]!r} is compressed, and can only be read from "
            f"beginning to end; unpack it, e.g. with gunzip"
        )
    found = [file for file in named if file.suffix.lower() == ".tar"]
    if not found:
        raise UserError(
            f"data.path={str(path)!r}: no shard of {words[0]!r} in it; expected {_EXPECTED}"
        )
    return found


def read_shard(path: Path, shard: Path, label: str, group: Any) -> Iterator[Sample]:
    """Yield the samples of a shard, in order; no image is read.

    Args:
        path: the folder that names start from.
        shard: the archive.
        label: the ending of the member with a sample's class.
        group: ``group_by_keys`` of the library: members into samples.

    Raises:
        UserError: it is damaged, or a sample has no image, several, or no class.
    """
    blame, name = f"data.path: shard {str(shard)!r}", shard.relative_to(path).as_posix()
    try:
        with shard.open("rb") as file:
            for sample in group(_members(shard)):
                images = [end for end in sample if f".{end}".endswith(EXTENSIONS)]
                if len(images) != 1 or label not in sample:
                    ends = ", ".join(f".{end}" for end in sample if not end.startswith("__"))
                    raise UserError(
                        f"{blame}: sample {sample['__key__']!r} has {ends}; expected one image and "
                        f"its class in .{label} (data.label names another ending)"
                    )
                start, size = sample[label]
                text = _bytes(file.fileno(), start, min(size, 4096)).decode("utf-8").strip()
                start, size = sample[images[0]]
                member = f"{sample['__key__']}.{images[0]}"
                yield Sample(f"{name}:{member}", name, start, size, text)
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error.args[0] if error.args else error)
        raise UserError(f"{blame} is damaged or no tar archive ({reason}); fetch it again") from (
            error
        )


def _members(shard: Path) -> Iterator[Dict[str, Any]]:
    """Yield the files in a shard as the library takes them, (first byte, bytes) for content."""
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            if member.isreg():
                place: Tuple[int, int] = (member.offset_data, member.size)
                yield {"fname": member.name, "data": place, "__url__": str(shard)}
            archive.members = []  # type: ignore[attr-defined]  # else all are kept
        # A damaged header in the middle ends the walk as the end does.
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        rest = archive.fileobj.read(tarfile.BLOCKSIZE)
        if rest.strip(b"\0"):
            raise tarfile.ReadError("a header in it is wrong")
