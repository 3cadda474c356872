"""TensorBoard's event files: each record is written at once, so that a failure is said there."""

from __future__ import annotations

import io
import os
import re
import socket
import time
from pathlib import Path
from typing import Mapping, Optional

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ipu_proxynorm.files.whole import appending

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.")
#: What readers take the records of a file for.
_VERSION = "brain.Event:2"


class EventFile:
    """A new event file in a folder, which TensorBoard reads after those that are there.

    It takes files in the order of their names, which begin with the second of their beginning.
    Where the clock was set back, or that of another machine was ahead, a later second than the
    last file's is named instead.

    Args:
        folder: where; made if it is not there.
        purge_step: steps of earlier files from this one on are to be left out; None: none.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, purge_step: Optional[int] = None) -> None:
        folder.mkdir(exist_ok=True)
        found = (_NAME.match(name) for name in os.listdir(folder))
        last = max((int(name[1]) for name in found if name), default=-1)
        second = max(int(time.time()), last + 1)
        name = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self.path = folder / name
        self._write(Event(file_version=_VERSION))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=purge_step, session_log=start))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append numbers of one step, by tag.

        Raises:
            OSError: the file cannot be written.
        """
        values = [
            Summary.Value(tag=tag, simple_value=float(value)) for tag, value in scalars.items()
        ]
        self._write(Event(step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        with appending(self.path) as stream:
            stream.write(record.getvalue())
