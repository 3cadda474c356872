"""An image file's content as RGB of 8 bits, within bounds of memory, or the reason why not."""

from __future__ import annotations

import enum
import errno
import io
import os
import stat
import struct
import warnings
from pathlib import Path
from typing import IO, BinaryIO, Tuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ipu_proxynorm.data.libraries import transforms

#: Kinds of file that are read, by Pillow's names: those of photographs and data sets. Others are
#: no images here; some of Pillow's readers start other programs.
_KNOWN = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "JPEG2000", "AVIF")
Image.init()
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)  # AVIF: since Pillow 11.3
#: How the names of image files end: the list of torchvision's `ImageFolder`.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
#: An image of more pixels is not decoded: as RGB these take 256 MiB in Pillow.
MOST_PIXELS = 2**26
#: A file, or an archive's member unpacked, of more bytes is not read.
MOST_BYTES = 2**28
# A TIFF's directory may be anywhere; all others say at their beginning what they are.
_MAGIC = (
    *((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF")),
    *((b"RIFF", "WEBP"), (b"BM", "BMP"), (b"GIF8", "GIF")),
    *((b"P%d" % n, "PPM") for n in range(1, 7)),
)


class Reason(enum.IntEnum):
    """Why a file is left out, or why nothing can be read any further."""

    DAMAGED = 1
    NO_IMAGE = 2
    TOO_LARGE = 3
    UNSUPPORTED = 4
    MISSING = 5
    PERMISSION = 6
    MEMORY = 7
    DISK = 8
    FILES = 9
    VANISHED = 10

    @property
    def is_the_machines(self) -> bool:
        """Whether another machine, or the same one in another state, would read the file."""
        return self >= Reason.PERMISSION

    @property
    def sentence(self) -> str:
        """Return what is said of a file."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.DAMAGED: "is damaged",
    Reason.NO_IMAGE: "is no image",
    Reason.TOO_LARGE: (
        f"is too large (more than {MOST_PIXELS} pixels, or {MOST_BYTES // 2**20} MiB)"
    ),
    Reason.UNSUPPORTED: "has pixels that are not read (of 32 bits, or encrypted)",
    Reason.MISSING: "is not there, or a link to nothing",
    Reason.PERMISSION: "may not be read by this user (no permission)",
    Reason.MEMORY: "did not fit into the memory that is free",
    Reason.FILES: "could not be opened, as too many files are open",
    Reason.VANISHED: "was there when the program began, and is not any more",
    Reason.DISK: "could not be read from its disk or network",
}


class Unreadable(Exception):
    """A file that cannot be read, and why.

    Attributes:
        reason: the kind of reason.

    """

    def __init__(self, message: str, reason: Reason = Reason.DAMAGED) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> Tuple[type, Tuple[str, Reason]]:
        """Name what it is made of."""
        return type(self), (str(self), self.reason)


def decode(content: bytes) -> Tensor:
    """Return the RGB image in a file's bytes as uint8 ``(3, H, W)``.

    Grey images of 16 bits are scaled by 1/257; alpha is dropped, and of several pictures the first
    is taken, as in torchvision's ``ImageFolder``. A JPEG of more than `MOST_PIXELS` is decoded at a
    half, a quarter or an eighth of its size.

    Raises:
        Unreadable: it is no image, damaged, too large, or of pixels whose range is not known.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own limit, and of odd metadata
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _pixels(image)
    except Unreadable:
        raise
    except MemoryError as error:
        raise Unreadable("the machine's memory is used up", Reason.MEMORY) from error
    except Image.DecompressionBombError as error:
        raise Unreadable(str(error), Reason.TOO_LARGE) from error
    except UnidentifiedImageError as error:
        raise _unidentified(content) from error
    # Pillow's decoders raise whatever the damage leads to.
    except Exception as error:
        reason = str(error).partition(" <")[0] or type(error).__name__
        raise Unreadable(reason) from error


def _pixels(image: Image.Image) -> Tensor:
    if image.width * image.height > MOST_PIXELS and image.format in ("JPEG", "MPO"):
        _shrink(image)
    if image.width * image.height > MOST_PIXELS:
        raise Unreadable(
            f"has {image.width} x {image.height} pixels; at most {MOST_PIXELS} are read",
            Reason.TOO_LARGE,
        )
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _sixteen_bits(image)
    if image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floating point"
        raise Unreadable(
            f"has pixels of 32 bits ({kind}), whose range is not known; save it with 8 or 16 bits",
            Reason.UNSUPPORTED,
        )
    # convert() copies even where there is nothing to convert.
    return transforms().functional.pil_to_tensor(
        image if image.mode == "RGB" else image.convert("RGB")
    )


def _shrink(image: Image.Image) -> None:
    """Let the JPEG decoder itself make the image smaller."""
    width, height = image.size
    fits = [f for f in (2, 4, 8) if width * height <= MOST_PIXELS * f * f]
    factor = fits[0] if fits else 8
    image.draft("RGB", (max(width // factor, 1), max(height // factor, 1)))


def _sixteen_bits(image: Image.Image) -> Tensor:
    values = np.array(image)
    if values.dtype != np.uint16:
        values = values.clip(0, 65535).astype(np.uint16)
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return torch.from_numpy(grey).unsqueeze(0).expand(3, -1, -1)


def _unidentified(content: bytes) -> Unreadable:
    """Return why Pillow knows no image in a file's bytes."""
    if not content:
        return Unreadable("is empty")
    kind = next((kind for magic, kind in _MAGIC if content.startswith(magic)), None)
    if kind is None:
        return Unreadable("is no image of a known kind", Reason.NO_IMAGE)
    if kind == "TIFF" and _has_directory(content):
        return Unreadable("is a TIFF of a kind that Pillow does not read", Reason.UNSUPPORTED)
    return Unreadable(f"begins as {kind} and is damaged")


def _has_directory(content: bytes) -> bool:
    """Tell whether a TIFF's first directory is whole, with all that its pixels are made of."""
    order = "<" if content[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        tags = [
            struct.unpack_from(f"{order}HHII", content, start + 2 + 12 * n)[0] for n in range(count)
        ]
    except struct.error:
        return False
    return {256, 257} <= set(tags)  # width and height


def bounded(file: IO[bytes], size: int) -> bytes:
    """Return what is in a file, of ``size`` bytes as its folder or archive says.

    Raises:
        Unreadable: it is more than `MOST_BYTES`.
    """
    if size <= MOST_BYTES:
        content = file.read(MOST_BYTES + 1)
        if len(content) <= MOST_BYTES:
            return content
    raise Unreadable(f"has {size} bytes; at most {MOST_BYTES} are read", Reason.TOO_LARGE)


def opened(path: Path) -> BinaryIO:
    """Open a file that was seen to be one.

    Raises:
        Unreadable: it is something else now; a pipe would be waited for.
        OSError: it cannot be opened.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(number).st_mode):
        return os.fdopen(number, "rb")
    os.close(number)
    raise Unreadable("is no file any more", Reason.VANISHED)


def cannot_read(error: Exception, listed: bool = False) -> Unreadable:
    """Return why a file's bytes cannot be read, from the error of whoever tried.

    Args:
        error: the error.
        listed: this program has seen the file, or a link of that name, itself.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, Unreadable):
        return error
    if isinstance(error, MemoryError):
        return Unreadable("the machine's memory is used up", Reason.MEMORY)
    if isinstance(error, (FileNotFoundError, NotADirectoryError, KeyError)):
        name = getattr(error, "filename", None)
        if listed and name is not None and not os.path.lexists(name):
            return Unreadable(text, Reason.VANISHED)
        return Unreadable(text, Reason.MISSING)
    if isinstance(error, PermissionError):
        return Unreadable(text, Reason.PERMISSION)
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return Unreadable(text, Reason.MISSING)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return Unreadable(text, Reason.MEMORY)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return Unreadable(text, Reason.FILES)
    if isinstance(error, OSError) and error.errno is not None and error.errno != errno.EINVAL:
        return Unreadable(text, Reason.DISK)
    encrypted = isinstance(error, RuntimeError) and "encrypted" in text
    if encrypted or isinstance(error, NotImplementedError):
        return Unreadable(text, Reason.UNSUPPORTED)
    return Unreadable(text)  # what unpacks an archive raises whatever the damage leads to
