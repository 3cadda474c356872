"""Where operations come from: lines of the user's program, and where on the device they run."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import sys
from types import FrameType, TracebackType
from typing import NamedTuple, Optional, Tuple

import torch

from ipu_proxynorm import nested

_NOT_THE_USERS = (
    os.path.dirname(os.path.dirname(__file__)) + os.sep,  # the simulator
    nested.__file__,
    os.path.dirname(torch.__file__) + os.sep,
    contextlib.__file__,
    copy.__file__,
    functools.__file__,
)


class Origin(NamedTuple):
    """Where an operation comes from, and where it runs."""

    file: str
    line: int
    stage: int
    phase: int
    ipu: int
    backward: bool

    @property
    def location(self) -> str:
        """``file:line``, or "" where there is none."""
        return f"{self.file}:{self.line}" if self.file else ""


def find_origin(placement: Tuple[int, int, int]) -> Origin:
    """Return the origin of an operation called just now: the innermost frame of the user's code.

    Args:
        placement: pipeline stage, phase and IPU of the active block.

    """
    stage, phase, ipu = placement
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None:
        if _is_users(frame):
            return Origin(frame.f_code.co_filename, frame.f_lineno, stage, phase, ipu, False)
        frame = frame.f_back
    return Origin("", 0, stage, phase, ipu, False)


def find_location(traceback: Optional[TracebackType]) -> str:
    """Return where an error comes from, ``file:line``: the innermost frame of the user's code."""
    location = ""
    while traceback is not None:
        if _is_users(traceback.tb_frame):
            location = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return location


def _is_users(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return not file.startswith(_NOT_THE_USERS) and not file.startswith("<")
