"""Files that are whole or not there, whenever a process stops, and files that grow by records."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import BinaryIO, Iterator

#: What systems say whose folders cannot be flushed: network file systems, some of FUSE's.
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream to a file beside ``path``, which takes its name when all is on the disk.

    At every instant ``path`` holds the old or the new content, and after this the new one, also
    where the machine loses its power. If writing fails, the old one stays and nothing is left.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        flush_names(path.parent)
    except BaseException:
        _discard(temporary)
        raise


def appending(path: Path) -> BinaryIO:
    """Open a file, made if it is not there, to append to it.

    Raises:
        OSError: it cannot be written; a pipe that nobody reads is not waited for.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
    number = os.open(path, flags, 0o666)
    os.set_blocking(number, True)
    return os.fdopen(number, "ab")


def flush_names(folder: Path) -> None:
    """Bring the names of the files in ``folder`` to the disk, where its file system can do so."""
    try:
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS:
            raise


def _discard(path: Path) -> None:
    """Remove what was written of a file, if that can be done."""
    try:
        path.unlink()
    except OSError:
        return  # it says so itself the next time it is written
