"""The command in processes of its own, as torchrun starts them, with a fault arranged in some."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import (
    Dict,
    Iterator,
    List,
    Optional,
    Tuple,
)

import injected as do
from fault_list import PORT, READER, STOPS, Cell
from phases import BEFORE, Place, arrange

#: Seconds that a cell may take.
CELL_SECONDS = 240


class InChild(BaseException):
    """Leaves all that the harness was about, in a child: what follows is an ordinary program."""

    def __init__(self, words: List[str]) -> None:
        super().__init__()
        self.words = words


class Started:
    """The command in processes of its own, each a session, as torchrun starts them.

    Args:
        words: the command line.
        folder: where each process's output goes.
        count: how many processes.
        cell: the fault that they are given; None: none.
        place: where they work.
    """

    def __init__(
        self, words: List[str], folder: Path, count: int, cell: Optional[Cell], place: Place
    ) -> None:
        self.folder, self.cell = folder, cell
        self.ended: Dict[int, Tuple[int, float]] = {}
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.occupied: Optional[socket.socket] = None
        if cell is not None and cell.fault.name == PORT:
            self.occupied = socket.socket()
            self.occupied.bind(("127.0.0.1", port))
            self.occupied.listen()
        pipe = os.pipe() if cell is not None and cell.fault.name == READER else None
        self.pids = [
            self._fork(words, rank, count, port, dataclasses.replace(place, rank=rank), pipe)
            for rank in range(count)
        ]
        for number in pipe or ():
            os.close(number)

    def _fork(
        self,
        words: List[str],
        rank: int,
        count: int,
        port: int,
        place: Place,
        pipe: Optional[Tuple[int, int]],
    ) -> int:
        child = os.fork()
        if child:
            return child
        os.setsid()
        if self.occupied is not None:
            self.occupied.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update({**shared, "RANK": str(rank)} if count > 1 else {})
        with open(self.folder / f"out{rank}", "wb") as out:
            do.print_to(out.fileno(), 1)
        with open(self.folder / f"err{rank}", "wb") as errors:
            do.print_to(errors.fileno(), 2)
        if pipe is not None and rank:
            for number in pipe:
                os.close(number)
        elif pipe is not None:
            do.print_to(pipe[1], 1)
            os.close(pipe[1])
            place.reader = pipe[0]
            do.keep_reader_here(place)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        if self.cell is not None:
            self.cell.fault.prepare(place)
            self._arrange(self.cell, place)
        sys.argv[0] = "ipu-proxynorm"
        raise InChild(words)

    @staticmethod
    def _arrange(cell: Cell, place: Place) -> None:
        if place.rank not in cell.victims:
            return
        if cell.phase == BEFORE:
            cell.fault.act(place)
        else:
            arrange(cell.phase, lambda: cell.fault.act(place), place.rank == 0)

    def end(self, seconds: float = CELL_SECONDS) -> bool:
        """Wait until all have ended; tell whether they did so in time, by themselves."""
        cell = self.cell
        stopped = cell.victims if cell is not None and cell.fault.name in STOPS else []
        began = time.monotonic()
        while len(self.ended) < len(self.pids):
            for pid in self.pids:
                if pid in self.ended:
                    continue
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
                    self.ended[pid] = code, time.monotonic()
            if stopped and len(self.ended) == len(self.pids) - 1:
                os.kill(self.pids[stopped[0]], signal.SIGCONT)
            if time.monotonic() - began > seconds:
                for pid in set(self.pids) - self.ended.keys():
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    self.ended[pid] = -signal.SIGKILL, time.monotonic()
                return False
            time.sleep(0.01)
        if self.occupied is not None:
            self.occupied.close()
        return True

    @property
    def statuses(self) -> List[int]:
        """The exit status of each process, minus a signal's number where it died of one."""
        return [self.ended[pid][0] for pid in self.pids]

    @property
    def outlived(self) -> float:
        """Seconds between the first end and the last."""
        times = [when for _, when in self.ended.values()]
        return max(times) - min(times)

    def left_behind(self, seconds: float = 10) -> List[int]:
        """Return which processes of these sessions are still there after so long; end them."""
        sessions, began = set(self.pids), time.monotonic()
        while True:
            left = [pid for pid, session in sessions_of_processes() if session in sessions]
            if not left:
                return []
            if time.monotonic() - began > seconds:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                return left
            time.sleep(0.05)

    def printed(self, name: str) -> List[str]:
        """Return the lines of all processes on ``out`` or ``err``."""
        found = []
        for rank in range(len(self.pids)):
            text = (self.folder / f"{name}{rank}").read_text(errors="replace")
            found += [line for line in text.splitlines() if line.strip()]
        return found


def sessions_of_processes() -> Iterator[Tuple[int, int]]:
    """Yield the id of each process that lives here, and its session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if state not in "ZX":
                yield int(path.parent.name), int(session)
