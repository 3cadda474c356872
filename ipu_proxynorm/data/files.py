"""Labelled image files: ``<part>/<class>/<file>`` below a folder or in a zip archive."""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from ipu_proxynorm.errors import UserError


class Unreadable(Exception):
    """A file that is no image, or a damaged one."""


def decode(content: bytes) -> Tensor:
    """Return the RGB image in a file's bytes as uint8 ``(3, H, W)``.

    Raises:
        Unreadable: it is no image, or damaged.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return F.pil_to_tensor(image.convert("RGB"))
    # Pillow's decoders raise whatever the damage leads to.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).partition(" <")[0] or type(error).__name__
        raise Unreadable(reason) from error


class Store:
    """A folder or a zip archive; files are named by their path in it."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._archive: Optional[zipfile.ZipFile] = None
        self._opened_by: Optional[int] = None

    def __getstate__(self) -> Dict[str, object]:
        return {"path": self.path, "_archive": None, "_opened_by": None}

    @property
    def zipped(self) -> bool:
        """Whether the path is a file: a zip archive."""
        return self.path.is_file()

    def archive(self) -> zipfile.ZipFile:
        """Return the archive, opened by this process: a position cannot be shared with another."""
        if self._archive is None or self._opened_by != os.getpid():
            try:
                self._archive = zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(
                    f"data.path={str(self.path)!r}: not a zip archive ({error}); expected an "
                    f"archive or a folder with <part>/<class>/<file>"
                ) from error
            self._opened_by = os.getpid()
        return self._archive

    def listing(self, part: str) -> List[Tuple[str, str]]:
        """Return (class, name) of every file in ``part``, sorted; hidden files are left out."""
        found: List[Tuple[str, str]] = []
        if self.zipped:
            for name in self.archive().namelist():
                words = name.split("/")
                if len(words) == 3 and words[0] == part and words[2]:
                    found.append((words[1], name))
        else:
            for label in os.scandir(self.path / part):
                if label.is_dir():
                    found += [
                        (label.name, f"{part}/{label.name}/{file.name}")
                        for file in os.scandir(label.path)
                        if file.is_file()
                    ]
        return sorted(item for item in found if not item[1].rpartition("/")[2].startswith("."))

    def has(self, part: str) -> bool:
        """Tell whether there is a folder ``part``."""
        if self.zipped:
            return any(name.startswith(f"{part}/") for name in self.archive().namelist())
        return (self.path / part).is_dir()

    def read(self, name: str) -> Tensor:
        """Return one image; see :func:`decode`."""
        try:
            content = self.archive().read(name) if self.zipped else (self.path / name).read_bytes()
        except (OSError, zipfile.BadZipFile) as error:
            raise Unreadable(str(error)) from error
        return decode(content)


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of one part: names, the number of each one's class, and what is no image."""

    classes: List[str]
    names: List[str]
    labels: List[int]
    strangers: List[str]


def list_images(store: Store, part: str) -> Listing:
    """Return the images of ``part``, classes and files in alphabetical order.

    Raises:
        UserError: there is no class, or a class without an image.
    """
    files = store.listing(part)
    strangers = [name for _, name in files if not name.lower().endswith(IMG_EXTENSIONS)]
    images = [(label, name) for label, name in files if name.lower().endswith(IMG_EXTENSIONS)]
    classes = sorted({label for label, _ in files})
    empty = sorted(set(classes) - {label for label, _ in images})
    if not images or empty:
        where = f"{part}/{empty[0]}" if empty else part
        raise UserError(
            f"data.path={str(store.path)!r}: no image in {where!r}; expected class folders with "
            f"images ({', '.join(IMG_EXTENSIONS[:3])}, ...)"
        )
    numbers = {label: number for number, label in enumerate(classes)}
    return Listing(
        classes, [name for _, name in images], [numbers[label] for label, _ in images], strangers
    )


def find_part(store: Store, names: Sequence[str]) -> str:
    """Return the first of ``names`` that the store has.

    Raises:
        UserError: it has none.
    """
    for name in names:
        if store.has(name):
            return name
    wanted = " or ".join(f"{name}/<class>/" for name in names)
    raise UserError(
        f"data.path={str(store.path)!r}: no folder {' or '.join(names)} in it; expected "
        f"train/<class>/ and val/<class>/ with images, here {wanted}"
    )
