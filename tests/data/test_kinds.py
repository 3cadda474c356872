"""Every kind of file in folders of photographs, and what becomes of it: docs/data.md's table.

python tests/data/test_kinds.py    # print the table
"""

import io
import os
import resource
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ipu_proxynorm.data import create_data
from ipu_proxynorm.data.augment import centre_crop
from ipu_proxynorm.data.decoding import MOST_PIXELS, Reason, Unreadable
from ipu_proxynorm.data.files import Store, decode, list_images
from ipu_proxynorm.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
HEADER = "| file | what happens |\n|---|---|"
GREY = np.tile(np.arange(0, 256, 8, dtype=np.uint8)[:, None], (1, 8))  # (32, 8)
RGB = np.stack([GREY, GREY[::-1], GREY], 2)


def saved(image, form, **options):
    """Return an image file's bytes."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, form, **options)
    return file.getvalue()


def mode(name, form="PNG", **options):
    pixels = GREY if name in ("1", "L", "LA") else RGB
    return lambda: saved(Image.fromarray(pixels).convert(name), form, **options)


def png(width, height, data=b"", depth=8):
    """Return a PNG file of one's own making: its header may say anything."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def cut(content, share=0.6):
    return content[: int(len(content) * share)]


def flipped(content):
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(byte ^ 255 for byte in content[middle : middle + 8])
        + content[middle + 8 :]
    )


def tiff(values):
    """Return a TIFF of one channel of any type, uncompressed."""
    height, width = values.shape
    formats = {"u": 1, "i": 2, "f": 3}
    tags = [(256, width), (257, height), (258, values.itemsize * 8), (259, 1), (262, 1), (273, 8)]
    tags += [(277, 1), (278, height), (279, values.nbytes), (339, formats[values.dtype.kind])]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + values.nbytes
    return (
        b"II*\0"
        + struct.pack("<I", start)
        + values.tobytes()
        + struct.pack("<H", len(tags))
        + entries
        + b"\0" * 4
    )


def frames(form):
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    options = {"lossless": True} if form == "WEBP" else {}
    return lambda: saved(
        first, form, save_all=True, append_images=[second], duration=100, **options
    )


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(RGB, "JPEG", exif=exif, quality=95)


def encrypted_zip():
    return b"PK\x03\x04" + b"\1" * 60


SIXTEEN = GREY.astype(np.uint16) * 257
READ, FIRST, DROPPED = "read", "read: the first picture", "read, transparency dropped"
#: Name, what happens, content.
FILES = [
    ("JPEG, RGB", READ, lambda: saved(RGB, "JPEG", quality=95)),
    ("JPEG, grey", READ, lambda: saved(GREY, "JPEG", quality=95)),
    ("JPEG, CMYK", READ, mode("CMYK", "JPEG", quality=95)),
    ("JPEG, progressive", READ, lambda: saved(RGB, "JPEG", quality=95, progressive=True)),
    ("JPEG with an EXIF orientation", "read as stored, not turned", rotated),
    ("PNG, RGB", READ, mode("RGB")),
    ("PNG, RGB and alpha", DROPPED, mode("RGBA")),
    ("PNG, grey", READ, mode("L")),
    ("PNG, grey and alpha", DROPPED, mode("LA")),
    ("PNG, palette", READ, mode("P")),
    ("PNG, black and white, 1 bit", READ, mode("1")),
    ("PNG, grey, 16 bits", "read, scaled by 1/257", lambda: saved(SIXTEEN, "PNG")),
    ("PNG named .jpg", READ, mode("RGB")),
    ("PNG, animated", FIRST, frames("PNG")),
    ("GIF named .png", FIRST, lambda: saved(Image.fromarray(RGB).convert("P"), "GIF")),
    ("TIFF, RGB", READ, mode("RGB", "TIFF")),
    ("TIFF, LZW", READ, mode("RGB", "TIFF", compression="tiff_lzw")),
    ("TIFF, grey, 16 bits", "read, scaled by 1/257", lambda: saved(SIXTEEN, "TIFF")),
    ("TIFF of several pages", FIRST, frames("TIFF")),
    ("TIFF, CMYK", READ, mode("CMYK", "TIFF")),
    ("TIFF, 32-bit integers", Reason.UNSUPPORTED, lambda: tiff(GREY.astype(np.int32))),
    ("TIFF, 32-bit floating point", Reason.UNSUPPORTED, lambda: tiff(GREY.astype(np.float32))),
    ("TIFF, 64-bit floating point", Reason.UNSUPPORTED, lambda: tiff(GREY.astype(np.float64))),
    ("WebP", READ, mode("RGB", "WEBP", lossless=True)),
    ("WebP, animated", FIRST, frames("WEBP")),
    ("BMP", READ, mode("RGB", "BMP")),
    ("PPM", READ, mode("RGB", "PPM")),
    (
        "PGM, 16 bits",
        "read, scaled by 1/257",
        lambda: b"P5 8 32 65535\n" + SIXTEEN.byteswap().tobytes(),
    ),
    ("JPEG 2000 named .png", READ, mode("RGB", "JPEG2000")),
    ("1 x 1 pixel", READ, lambda: saved(RGB[:1, :1], "PNG")),
    ("3000 x 1 pixels", READ, lambda: saved(np.zeros((1, 3000, 3), np.uint8), "PNG")),
    ("JPEG, cut off", Reason.DAMAGED, lambda: cut(saved(RGB, "JPEG", quality=95))),
    ("PNG, cut off", Reason.DAMAGED, lambda: cut(saved(RGB, "PNG"))),
    ("PNG, some bytes changed", Reason.DAMAGED, lambda: flipped(saved(RGB, "PNG"))),
    ("PNG, its header alone", Reason.DAMAGED, lambda: saved(RGB, "PNG")[:20]),
    ("TIFF, cut off", Reason.DAMAGED, lambda: cut(saved(RGB, "TIFF"), 0.3)),
    ("an empty file", Reason.DAMAGED, lambda: b""),
    ("a web page named .jpg", Reason.NO_IMAGE, lambda: b"<html>404</html>"),
    ("text named .png", Reason.NO_IMAGE, lambda: b"no image at all"),
    ("PDF named .jpg", Reason.NO_IMAGE, lambda: b"%PDF-1.4\n%" + b"x" * 99),
    ("PostScript named .jpg", Reason.NO_IMAGE, lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n" + b"x" * 99),
    ("SVG named .png", Reason.NO_IMAGE, lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    ("HEIC named .jpg", Reason.NO_IMAGE, lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
    ("zip archive named .png", Reason.NO_IMAGE, encrypted_zip),
    ("zeros alone", Reason.NO_IMAGE, lambda: bytes(5000)),
    ("PNG whose header says 100,000 x 100,000", Reason.TOO_LARGE, lambda: png(100_000, 100_000)),
    (
        "PNG of 169 megapixels in 164 KB",
        Reason.TOO_LARGE,
        lambda: png(13_000, 13_000, zlib.compress(bytes(10**6))),
    ),
    (
        "PNG whose header says 8,000 x 8,000 and holds nothing",
        Reason.DAMAGED,
        lambda: png(8000, 8000),
    ),
]
LARGE = "read, by the decoder at a half, a quarter or an eighth of its size"
#: Name and what happens; each has a test of its own below.
OTHERS = [
    ("JPEG of more than 67 megapixels", LARGE),
    ("file of more than 256 MiB", Reason.TOO_LARGE),
    ("file that its user may not read", Reason.PERMISSION),
    ("link to nothing, or to itself", Reason.MISSING),
    ("file that goes while a run reads it", Reason.VANISHED),
    ("link to an image elsewhere", READ),
    ("link to a folder elsewhere", "its images are read"),
    ("link to a folder above, or within the same part", "not followed: each file once"),
    ("two links in two classes to one image", "refused, with both names"),
    ("two links in one class to one image", "read once"),
    ("pipe, socket or device named .png", "refused, with its name"),
    ("`.txt`, `.gif`, `.csv`, `Thumbs.db`, ...", "side file: said once, not read, not counted"),
    ("hidden file or folder", "not looked at"),
    ("zip archive with a folder around train/ and val/", READ),
    ("zip archive with `__MACOSX/` and backslashes", READ),
    ("member of a zip archive that is encrypted", Reason.UNSUPPORTED),
    ("member of a zip archive that unpacks to gigabytes", Reason.TOO_LARGE),
]


def said(outcome):
    if not isinstance(outcome, Reason):
        return outcome
    return f"{'the run stops' if outcome.is_the_machines else 'left out'}: {outcome.sentence}"


def table():
    rows = [(name, what) for name, what, _ in FILES] + OTHERS
    return "\n".join([HEADER, *(f"| {name} | {said(what)} |" for name, what in rows)])


@pytest.mark.parametrize(("name", "what", "content"), FILES, ids=[name for name, *_ in FILES])
def test_each_kind_of_file(name, what, content):
    if isinstance(what, Reason):
        with pytest.raises(Unreadable) as error:
            decode(content())
        assert error.value.reason == what
        return
    image = decode(content())
    assert (image.dtype, image.shape[0]) == (torch.uint8, 3)
    if tuple(image.shape) != (3, 32, 8):
        assert image.shape[1] == 1
        return
    grey = "grey" in name or "PGM" in name
    expected = torch.from_numpy(np.stack([GREY] * 3, 2) if grey else RGB).permute(2, 0, 1)
    if "1 bit" in name:  # dithered
        assert set(image.unique().tolist()) == {0, 255}
        return
    lossy = any(word in name for word in ("JPEG", "palette", "CMYK", "GIF"))
    assert (image.float() - expected).abs().mean() <= (45 if lossy else 0)


def test_the_table_of_the_docs():
    assert table() in PAGE.read_text("utf-8")
    assert len(FILES) + len(OTHERS) >= 40


def peak_of(function):
    """Return by how many MiB a function raises what the process ever took, at most."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def test_memory_is_that_of_what_is_needed():
    thin = saved(np.zeros((1, 3000, 3), np.uint8), "PNG")
    assert peak_of(lambda: centre_crop(decode(thin), 224, 8 / 7)) < 60
    bomb = png(13_000, 13_000, zlib.compress(bytes(10**6)))

    def refused():
        with pytest.raises(Unreadable):
            decode(bomb)

    assert peak_of(refused) < 60


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (5, 5000), (40, 200), (300, 200), (1, 1)])
def test_the_middle_of_an_image_of_any_shape_is_cropped(shape):
    ramp = torch.arange(shape[1]).float().mul(255 / max(shape[1] - 1, 1))
    image = ramp.round().to(torch.uint8).expand(3, *shape)
    crop = centre_crop(image, 64, 8 / 7)
    assert crop.shape == (3, 64, 64)
    assert abs(crop.float().mean() - image.float().mean()) <= 2


def test_a_large_jpeg_is_decoded_smaller(monkeypatch):
    photograph = saved(Image.new("RGB", (400, 300), (9, 99, 199)), "JPEG")
    monkeypatch.setattr("ipu_proxynorm.data.decoding.MOST_PIXELS", 400 * 300 // 3)
    image = decode(photograph)
    assert 150 <= image.shape[1] <= 151
    assert abs(image[2].float().mean() - 199) < 3
    monkeypatch.setattr("ipu_proxynorm.data.decoding.MOST_PIXELS", 10)
    with pytest.raises(Unreadable, match=r"38 x 50|50 x 38") as error:
        decode(photograph)
    assert error.value.reason == Reason.TOO_LARGE
    assert MOST_PIXELS == 2**26


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for part in ("train", "val"):
        for number, label in enumerate("ab"):
            (root / part / label).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((9, 9, 3), 100 * number + i, np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{i}.png")
    return root


def listed(path, part="train"):
    return list_images(Store(str(path)), part)


def reason_of(path, name):
    with pytest.raises(Unreadable) as error:
        Store(str(path)).read(name)
    return error.value.reason


def test_files_that_cannot_be_had(folder, monkeypatch):
    large = folder / "train" / "a" / "large.png"
    with large.open("wb") as file:
        file.truncate(2**28 + 1)  # takes no room on the disk
    assert reason_of(folder, "train/a/large.png") == Reason.TOO_LARGE
    (folder / "train" / "a" / "gone.png").symlink_to("nowhere.png")
    (folder / "train" / "a" / "self.png").symlink_to("self.png")
    assert {"train/a/gone.png", "train/a/self.png"} < set(listed(folder).names)
    for name in ("gone", "self"):
        assert reason_of(folder, f"train/a/{name}.png") == Reason.MISSING
    assert reason_of(folder, "train/a/never.png") == Reason.VANISHED
    for error, reason in (
        (PermissionError(13, "denied"), Reason.PERMISSION),
        (OSError(5, "input/output error"), Reason.DISK),
        (OSError(12, "cannot allocate memory"), Reason.MEMORY),
        (MemoryError(), Reason.MEMORY),
    ):

        def fail(*_, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fail)
            assert reason_of(folder, "train/a/0.png") == reason


def test_links_pipes_and_devices(folder, tmp_path):
    pool = tmp_path / "pool"
    (pool / "more").mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(pool / "more" / f"{i}.png")
    (folder / "train" / "a" / "up").symlink_to("..")
    (folder / "train" / "a" / "here").symlink_to(".")
    (folder / "train" / "a" / "other").symlink_to("../b")
    (folder / "train" / "b" / "root").symlink_to(folder)
    (folder / "train" / "b" / "pool").symlink_to(pool)
    (pool / "back").symlink_to(pool)
    (folder / "train" / "a" / "again.png").symlink_to("0.png")
    found = listed(folder)
    assert [found.labels.count(label) for label in (0, 1)] == [3, 5]
    assert not any("up" in n or "here" in n or "other" in n or "again" in n for n in found.names)
    single = tmp_path / "single.png"
    Image.new("RGB", (9, 9)).save(single)
    for name in ("x.png", "y.png"):
        (folder / "train" / "a" / name).symlink_to(single)
    assert len(listed(folder).names) == 9
    (folder / "train" / "b" / "z.png").symlink_to(single)
    with pytest.raises(UserError, match=r"'train/a/x.png' and 'train/b/z.png' are one file"):
        listed(folder)
    (folder / "train" / "b" / "z.png").unlink()
    os.mkfifo(folder / "train" / "b" / "notes.txt")  # no image by its name: a side file
    assert len(listed(folder).names) == 9
    os.mkfifo(folder / "train" / "b" / "pipe.png")
    with pytest.raises(UserError, match=r"pipe.png' is no file, but a pipe, socket or device"):
        listed(folder)
    (folder / "train" / "b" / "pipe.png").unlink()
    (folder / "train" / "b" / "null.png").symlink_to("/dev/null")
    with pytest.raises(UserError, match=r"null.png' is no file"):
        listed(folder)


def test_a_socket_is_no_file(folder, monkeypatch):
    monkeypatch.chdir(folder / "train" / "a")  # a socket's path has a short limit
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        with pytest.raises(UserError, match=r"s.png' is no file"):
            listed(folder)


def archive_of(folder, path, around="", slash="/"):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            name = around + str(file.relative_to(folder))
            archive.writestr(name.replace("/", slash), file.read_bytes())
        archive.writestr("__MACOSX/photos/train/a/._0.png", b"resource fork")
    return path


@pytest.mark.parametrize(("around", "slash"), [("", "/"), ("photos/", "/"), ("photos/", "\\")])
def test_archives_with_a_folder_around_them(folder, tmp_path, around, slash):
    archive = archive_of(folder, tmp_path / "photos.zip", around, slash)
    data = create_data("image_folder", str(archive), image_size=9, augment="none")
    assert (data.sizes(), data.num_classes) == ((6, 6), 2)
    assert [int(data.train[i][0][0, 0, 0]) for i in range(6)] == [0, 1, 2, 100, 101, 102]


def test_members_of_archives_that_are_not_read(folder, tmp_path, monkeypatch):
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive_of(folder, archive), "a", zipfile.ZIP_DEFLATED) as written:
        written.writestr("train/a/bomb.png", bytes(2**20))
        written.writestr("train/a/secret.png", b"secret")
    content = bytearray(archive.read_bytes())
    for start in (content.find(b"PK\x03\x04", content.rfind(b"PK\x03\x04") - 9), 0):
        start = content.rfind(b"PK\x03\x04") if start else content.rfind(b"PK\x01\x02")
        content[start + (6 if content[start + 2] == 3 else 8)] |= 1  # encrypted
    archive.write_bytes(content)
    monkeypatch.setattr("ipu_proxynorm.data.decoding.MOST_BYTES", 2**19)
    assert reason_of(archive, "train/a/bomb.png") == Reason.TOO_LARGE
    assert reason_of(archive, "train/a/secret.png") == Reason.UNSUPPORTED
    assert reason_of(archive, "train/a/9.png") == Reason.MISSING


if __name__ == "__main__":
    print(table())
