"""Labelled image files: ``<part>/<class>/.../<file>`` below a folder or in a zip archive."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

from torch import Tensor

from ipu_proxynorm.data.decoding import EXTENSIONS, Unreadable, bounded, cannot_read, decode, opened
from ipu_proxynorm.errors import UserError

#: Folders that hold the images of training and of validation.
PARTS = ("train", "val", "test")


__all__ = ["Listing", "Store", "Unreadable", "decode", "find_part", "list_images"]


class Store:
    """A folder or a zip archive; files are named by their path in it, ``<part>/<class>/...``."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._archive: Optional[zipfile.ZipFile] = None
        self._members: Dict[str, zipfile.ZipInfo] = {}
        self._opened_by: Optional[int] = None

    def __getstate__(self) -> Dict[str, object]:
        return {"path": self.path, "_archive": None, "_members": {}, "_opened_by": None}

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
            self._members = members(self._archive)
        return self._archive

    def listing(self, part: str) -> Dict[str, List[str]]:
        """Return every class in ``part`` with the names of its files, at any depth, sorted.

        Hidden files and folders are left out. Each file is there once, where it really is: a link
        to a folder that lies in ``part`` itself, or above it, is not followed.

        Raises:
            UserError: a folder cannot be read, an image is no file, or is in two classes.
        """
        if self.zipped:
            self.archive()
            names: Iterable[str] = (
                name
                for name in self._members
                if name.startswith(f"{part}/") and name.count("/") >= 2
            )
        else:
            names = walk(self.path, part)
        found: Dict[str, List[str]] = {}
        for name in names:
            _, label, *within = name.split("/")
            if not any(word.startswith(".") for word in (label, *within)):
                files = found.setdefault(label, [])
                files += [name] if within and within[-1] else []
        return {label: sorted(found[label]) for label in sorted(found)}

    def has(self, part: str) -> bool:
        """Tell whether there is a folder ``part``."""
        if self.zipped:
            self.archive()
            return any(name.startswith(f"{part}/") for name in self._members)
        return (self.path / part).is_dir()

    def read(self, name: str) -> Tensor:
        """Return one image; see :func:`decode`."""
        try:
            if self.zipped:
                archive = self.archive()
                member = self._members[name]
                with archive.open(member) as file:
                    content = bounded(file, member.file_size)
            else:
                with opened(self.path / name) as plain:
                    content = bounded(plain, os.fstat(plain.fileno()).st_size)
        except Exception as error:
            raise cannot_read(error, listed=True) from error
        return decode(content)


def members(archive: zipfile.ZipFile) -> Dict[str, zipfile.ZipInfo]:
    """Return an archive's members by name, ``/`` between folders, without one folder around all.

    Of members of one name the last counts, as for those who unpack it.
    """
    found = {info.filename.replace("\\", "/"): info for info in archive.infolist()}
    found = {name: info for name, info in found.items() if not name.startswith("__MACOSX/")}
    tops = {name.partition("/")[0] for name in found}
    if len(tops) == 1:
        (around,) = tops
        inner = {name[len(around) + 1 :]: info for name, info in found.items()}
        if any(name.startswith(f"{part}/") for name in inner for part in PARTS):
            return inner
    return found


def walk(path: Path, part: str) -> Iterator[str]:
    """Yield all below ``path/part``, named from ``path``; folders end in ``/``.

    Raises:
        UserError: a folder cannot be read, an image is no file, or one file is in two classes.
    """
    top = path / part
    inside = os.path.realpath(top)
    known: Dict[Tuple[int, int], str] = {}
    folders: Set[Tuple[int, int]] = set()
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        name = f"{part}/{folder.relative_to(top).as_posix()}/" if folder != top else f"{part}/"
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in folders:
                continue
            folders.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"data.path={str(path)!r}: {str(folder)!r} cannot be read ({error.strerror})"
            ) from error
        if folder != top:
            yield name
        for entry in entries:
            link = entry.is_symlink()
            elsewhere = not link or _leads_elsewhere(entry.path, inside)
            if _is_folder(entry):
                if elsewhere:
                    waiting.append(Path(entry.path))
            elif folder != top and elsewhere:
                _refuse_special(path, entry)
                if _first(path, f"{name}{entry.name}", entry, status.st_dev, known):
                    yield f"{name}{entry.name}"


def _leads_elsewhere(link: str, inside: str) -> bool:
    """Tell whether a link leads out of the folder ``inside``, not above it, or to nothing."""
    target = os.path.realpath(link)
    around = _within(target, inside) or _within(inside, target)
    return not around or not os.path.exists(link)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def walk_images(folder: Path) -> List[Path]:
    """Return all images in a folder, at any depth, by name; hidden ones are left out."""
    found = [
        path
        for path in folder.rglob("*")
        if _is_image(path.name)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(found)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _refuse_special(path: Path, entry: os.DirEntry[str]) -> None:
    """Raise where reading an image would wait for ever, or read a device."""
    if not _is_image(entry.name) or os.path.isfile(entry.path):
        return
    if os.path.exists(entry.path):
        raise UserError(
            f"data.path={str(path)!r}: {entry.path!r} is no file, but a pipe, socket or device; "
            f"remove it"
        )


def _first(
    path: Path, name: str, entry: os.DirEntry[str], device: int, known: Dict[Tuple[int, int], str]
) -> bool:
    """Tell whether a file is met for the first time, under whatever name."""
    key = (device, entry.inode())
    if entry.is_symlink():
        try:
            status = entry.stat()
        except OSError:  # a link to nothing: whoever reads it says so
            return True
        key = (status.st_dev, status.st_ino)
    before = known.setdefault(key, name)
    if before != name and before.split("/")[1] != name.split("/")[1] and _is_image(name):
        raise UserError(
            f"data.path={str(path)!r}: {min(before, name)!r} and {max(before, name)!r} are one "
            f"file in two classes; remove one of the links"
        )
    return before == name


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


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
        label: [name for name in names if _is_image(name)] for label, names in listing.items()
    }
    empty = [label for label, names in images.items() if not names]
    if not images or empty:
        where = f"{part}/{empty[0]}" if empty else part
        raise UserError(
            f"data.path={str(store.path)!r}: no image in {where!r}; expected class folders with "
            f"images ({', '.join(EXTENSIONS[:3])}, ...)"
        )
    return Listing(
        classes=list(images),
        names=[name for names in images.values() for name in names],
        labels=[number for number, names in enumerate(images.values()) for _ in names],
        strangers=[name for names in listing.values() for name in names if not _is_image(name)],
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
