"""The errors that PopTorch raises."""

from __future__ import annotations


class Error(Exception):
    """An error that PopTorch reports.

    Attributes:
        type: which layer raised it.
        message: the text without the layer's name.
        location: where in the program, ``file:line``, or "".

    """

    type: str = ""
    message: str = ""
    location: str = ""

    def add_location(self, location: str) -> None:
        """Say where in the program, if that is not said yet."""
        if location and not self.location:
            self.location = location
            self.message += f" ({location})"
            self.args = (f"{self} ({location})",)


class RecoverableError(Error):
    """An error of the machine after which ``recovery_action`` makes the device usable again."""

    recovery_action: str = ""


class UnrecoverableError(Error):
    """An error of the machine that takes an operator to repair."""


def createError(message: str, layer: str = "poptorch_py_error", location: str = "") -> Error:
    """Return an ``Error`` whose text reads ``'layer': message``."""
    error = Error(f"'{layer}': {message}")
    error.type = layer
    error.message = message
    error.location = location
    return error
