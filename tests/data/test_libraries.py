"""Libraries that are imported when they are first needed."""

import sys

import pytest

from ipu_proxynorm.data.libraries import library
from ipu_proxynorm.errors import UserError


def write(folder, monkeypatch, name, text):
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))


def test_a_library_that_fails_half_way_is_one_sentence(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, "half_there", "x = None.operator")
    with pytest.raises(UserError, match=r"half_there cannot be imported \(half_there: Attribute"):
        library("half_there")


def test_memory_that_a_library_lacks_is_named_as_such(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, "too_large", "raise MemoryError")
    with pytest.raises(UserError, match="this machine's memory does not suffice"):
        library("too_large")


def test_what_torchvision_says_of_its_extension_is_not_printed(tmp_path, monkeypatch, recwarn):
    text = "import warnings; warnings.warn('Failed to load image Python extension: x')"
    write(tmp_path, monkeypatch, "extended", text)
    assert library("extended") is sys.modules["extended"]
    assert not recwarn.list
