"""A zip archive's SHA-256 at its end, as its comment: every bit of the file is checked.

Zip's own checksums cover the parts of an archive, not what lies between them; and a reader that
takes the archive apart before it knows that it is whole may fail in any way.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO, Optional

PREFIX = b"sha256:"
BYTES = len(PREFIX) + 2 * hashlib.sha256().digest_size


def seal(stream: BinaryIO) -> None:
    """Seal the archive without a comment that ``stream``, readable and writable, holds."""
    stream.seek(-2, os.SEEK_END)  # its last field: the length of the comment
    stream.write(struct.pack("<H", BYTES))
    stream.write(PREFIX + _sha256(stream, stream.tell()))


def broken(path: Path) -> Optional[str]:
    """Say why a file is not what was sealed; None: it is.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        content = stream.seek(0, os.SEEK_END) - BYTES
        stream.seek(max(content, 0))
        end = stream.read()
        if content < 0 or not end.startswith(PREFIX):
            return "its SHA-256 is not at its end"
        if end != PREFIX + _sha256(stream, content):
            return "its SHA-256 does not match"
    return None


def _sha256(stream: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 of the first ``size`` bytes in hexadecimal; ``stream`` then stands there.

    Raises:
        OSError: they cannot be read.
    """
    sha = hashlib.sha256()
    stream.seek(0)
    while size > 0:
        block = stream.read(min(size, 2**20))
        if not block:
            raise OSError("the file ends early")
        sha.update(block)
        size -= len(block)
    return sha.hexdigest().encode()
