"""Labelled image files: ``<part>/<class>/.../<file>`` below a folder or in a zip archive."""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence

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
    except Exception as error:
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
            except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
                raise UserError(
                    f"data.path={str(self.path)!r}: not a zip archive ({error}); expected an "
                    f"archive or a folder with <part>/<class>/<file>"
                ) from error
            self._opened_by = os.getpid()
        return self._archive

    def listing(self, part: str) -> Dict[str, List[str]]:
        """Return every class in ``part`` with the names of its files, at any depth, sorted.

        Hidden files and folders are left out.

        Raises:
            UserError: a folder cannot be read.
        """
        found: Dict[str, List[str]] = {}
        for name in self._names(part):
            _, label, *within = name.split("/")
            if not any(word.startswith(".") for word in (label, *within)):
                files = found.setdefault(label, [])
                files += [name] if within and within[-1] else []
        return {label: sorted(found[label]) for label in sorted(found)}

    def _names(self, part: str) -> Iterator[str]:
        """Yield all below ``part``, ``<part>/<class>/...``; folders end in ``/``."""
        if self.zipped:
            for name in self.archive().namelist():
                if name.startswith(f"{part}/") and name.count("/") >= 2:
                    yield name
            return

        def refuse(error: OSError) -> None:
            raise UserError(
                f"data.path={str(self.path)!r}: {error.filename!r} cannot be read "
                f"({error.strerror})"
            ) from error

        top = self.path / part
        for folder, _, files in os.walk(top, onerror=refuse, followlinks=True):
            if folder != str(top):
                name = f"{part}/{Path(folder).relative_to(top).as_posix()}/"
                yield name
                yield from (f"{name}{file}" for file in files)

    def has(self, part: str) -> bool:
        """Tell whether there is a folder ``part``."""
        if self.zipped:
            return any(name.startswith(f"{part}/") for name in self.archive().namelist())
        return (self.path / part).is_dir()

    def read(self, name: str) -> Tensor:
        """Return one image; see :func:`decode`."""
        try:
            content = self.archive().read(name) if self.zipped else (self.path / name).read_bytes()
        # What unpacks an archive raises whatever the damage leads to.
        except Exception as error:
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
    listing = store.listing(part)
    images = {
        label: [name for name in names if name.lower().endswith(IMG_EXTENSIONS)]
        for label, names in listing.items()
    }
    empty = [label for label, names in images.items() if not names]
    if not images or empty:
        where = f"{part}/{empty[0]}" if empty else part
        raise UserError(
            f"data.path={str(store.path)!r}: no image in {where!r}; expected class folders with "
            f"images ({', '.join(IMG_EXTENSIONS[:3])}, ...)"
        )
    return Listing(
        classes=list(images),
        names=[name for names in images.values() for name in names],
        labels=[number for number, names in enumerate(images.values()) for _ in names],
        strangers=[
            name
            for names in listing.values()
            for name in names
            if not name.lower().endswith(IMG_EXTENSIONS)
        ],
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
