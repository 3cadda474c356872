"""Which processes of a run are there: who has come, who has gone, and what the latter said."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import os
import socket
import threading
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set, Tuple

import torch.distributed as dist

from ipu_proxynorm.run.store import PatientStore, Unanswered

#: How long the processes wait for each other's answer when they look who is missing.
ROLL_CALL_SECONDS = 5.0
_PAUSE_SECONDS = 0.02
#: How often a process that waits, or computes, asks whether another has left word.
_LISTENING_SECONDS = 0.2
#: How long one goes on that has noticed another's end: several times what the others listen by.
_LINGERING_SECONDS = 1.0
#: How long the end of a process may take after its connections are closed.
_ENDING_SECONDS = 0.3


class Absent(Exception):
    """Not all processes have come, or not the right ones.

    Args:
        message: who.
        quiet: another process says so.
    """

    def __init__(self, message: str, quiet: bool = False) -> None:
        super().__init__(message)
        self.quiet = quiet


@dataclasses.dataclass(frozen=True)
class Word:
    """Why a process ends before the others.

    Args:
        text: what a person reads.
        signal_number: the signal that it ends by; 0: none.
        said: whether it has said so itself.
    """

    text: str
    signal_number: int = 0
    said: bool = False


class Attendance:
    """What each process of a run leaves in the store that all of them reach.

    A process of the same machine that has ended is noticed by its id, at once; of another machine
    it is known only that it does not answer.

    Args:
        store: shared by the processes.
        index: which of them this is.
        count: how many there are.
    """

    def __init__(self, store: dist.Store, index: int, count: int) -> None:
        self._store = PatientStore(store)
        self._index, self._count = index, count
        self._who: Dict[int, str] = {}
        self._heard: Optional[Tuple[int, Word]] = None
        self._lost: List[int] = []
        self._deaf = threading.Event()

    def come(self, deadline: float) -> None:
        """Say that this process is here, and wait for the others.

        Args:
            deadline: until when, as `time.monotonic` has it.

        Raises:
            Absent: one has not come by then, has come and ended, or counts the processes
                otherwise; or another has this one's number.
            RuntimeError: the store cannot be reached.
        """
        if self._store.add(f"taken/{self._index}", 1) > 1:
            raise Absent(f"another process was started with RANK={self._index}, too")
        self._store.set(f"who/{self._index}", _identity())
        self._store.set(f"count/{self._index}", str(self._count))
        self._store.add(f"here/{self._index}", 1)
        while len(self._who) < self._count:
            for number in range(self._count):
                if number not in self._who and self._store.add(f"here/{number}", 0):
                    self._who[number] = self._store.get(f"who/{number}").decode()
                    count = int(self._store.get(f"count/{number}"))
                    if count != self._count:
                        raise self.absent(f"process {number} was started with WORLD_SIZE={count}")
            if self.ended() or time.monotonic() > deadline or self._any_word() is not None:
                raise self.absent()
            time.sleep(_PAUSE_SECONDS)

    def absent(self, why: str = "") -> Absent:
        """Return the error for those that have not come, or have ended; one process says it.

        Args:
            why: what else is wrong with them.
        """
        gone = self.ended()
        numbers = gone or [n for n in range(self._count) if n not in self._who]
        why = why or self._named(numbers, "ended" if gone else "not come")
        others = set(self._who) - {*gone, self._index}
        deadline = time.monotonic() + ROLL_CALL_SECONDS
        speaks = self._index < min(others, default=self._count)
        try:
            if speaks:
                self.leave_word(Word("not all processes have met"))
                self._await("heard", others, deadline)
            while not speaks and self._any_word() is None:
                speaks = time.monotonic() > deadline
                time.sleep(_PAUSE_SECONDS)
        except RuntimeError:  # the store has gone
            pass
        return Absent(why, quiet=not speaks)

    def heard_word(self) -> Optional[Word]:
        """Return what the first has said that ended, as far as `listen` has noted it."""
        return self._heard[1] if self._heard is not None else None

    def without_store(self) -> Optional[Absent]:
        """Return the error for who has ended, and the store with it; None: all are there."""
        deadline = time.monotonic() + _LINGERING_SECONDS
        while not self.lost() and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
        gone = self.lost()
        if not gone:
            return None
        left = set(self._who) - set(gone)
        self._linger()
        quiet = self._index != min(left) or self._heard is not None
        return Absent(self._named(gone, "ended"), quiet=quiet)

    def _named(self, numbers: Sequence[int], done: str) -> str:
        listed = " and ".join(f"process {number}" for number in numbers)
        return f"{listed} of {self._count} {'has' if len(numbers) == 1 else 'have'} {done}"

    def listen(self) -> None:
        """Note from now on, in a thread, what another says before it ends, and who ends first.

        gloo's connections to it may stay open until it has ended, and its store ends with it: who
        looks only when a connection is lost may come too late, when all others have ended.
        """
        listener = threading.Thread(target=self._listen, daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads: looked for when one is lost
            listener.start()
            # A thread that comes back from torch while Python ends would abort the process.
            atexit.register(self._end_listening, listener)

    def _listen(self) -> None:
        reached = True
        while self._heard is None and not self._deaf.wait(_LISTENING_SECONDS):
            self._lost = self._lost or self.ended()
            try:
                self._heard = self._any_word() if reached else None
            except Unanswered:  # it may yet
                continue
            except RuntimeError:  # the store has gone
                reached = False
            if self._lost and not reached:
                return

    def _end_listening(self, listener: threading.Thread) -> None:
        self._deaf.set()
        listener.join(ROLL_CALL_SECONDS)

    def _any_word(self) -> Optional[Tuple[int, Word]]:
        """Return which other process has left word, and what; raises RuntimeError."""
        for number in range(self._count):
            if number != self._index and self._store.add(f"word/{number}", 0):
                return number, self._hear(number)
        return None

    def ended(self) -> List[int]:
        """Return which processes of this machine, of those that came, have ended."""
        return [number for number, identity in self._who.items() if _has_ended(identity)]

    def lost(self) -> List[int]:
        """Return which processes have ended: those that did so first, where that was noticed."""
        return self._lost or self.ended()

    def stand_still(self, numbers: Sequence[int]) -> bool:
        """Tell whether these processes are known to be there, on this machine."""
        place = _place()
        there = [self._who.get(number, "") for number in numbers]
        return bool(place and there) and all(
            who.rpartition(" ")[0] == place and not _has_ended(who) for who in there
        )

    def account(self) -> Tuple[List[int], Optional[Word]]:
        """Return which processes are gone or do not answer, and what the first of them has said.

        One that has left word is gone, though it may wait until it is heard.
        """
        # Before the store is asked, which may have gone with the first process.
        deadline = time.monotonic() + _ENDING_SECONDS
        while self._heard is None and not self.lost() and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
        deadline = time.monotonic() + ROLL_CALL_SECONDS
        waiting = set(range(self._count))
        answered = False
        while waiting and time.monotonic() < deadline:
            ended = self.lost()
            heard = self._heard
            try:
                if heard is None and 0 not in ended:
                    heard = self._any_word()
                if heard is not None:
                    return [heard[0]], heard[1]
                if ended:
                    self._linger()
                    return ended, None
                if not answered:
                    self._store.add(f"answers/{self._index}", 1)
                    answered = True
                waiting -= {n for n in waiting if self._store.add(f"answers/{n}", 0)}
            except Unanswered:
                return self._out_of_reach(), None
            except RuntimeError:  # the first process holds the store, unless the launcher does
                self._linger()
                return self.lost() or ([0] if self._index else []), None
            time.sleep(_PAUSE_SECONDS)
        self._conclude(set(range(self._count)) - waiting - {self._index})
        return sorted(waiting), None

    def _conclude(self, others: Set[int]) -> None:
        """Say that this process has called the roll; the first, which holds the store, waits.

        Another that asks later, and finds no store, would take the first for the one that is gone.
        """
        with contextlib.suppress(RuntimeError):
            self._store.add(f"concluded/{self._index}", 1)
            if self._index == 0:
                self._await("concluded", others, time.monotonic() + ROLL_CALL_SECONDS)

    def _out_of_reach(self) -> List[int]:
        """Return which processes a silent store leaves nothing known of.

        The first, which holds it, and those of other machines: a lost network leaves them alone,
        too, and one of each machine says so.
        """
        here = {
            n for n, who in self._who.items() if _place() and who.rpartition(" ")[0] == _place()
        }
        return [n for n in range(self._count) if n != self._index and (n == 0 or n not in here)]

    def _linger(self) -> None:
        """Give the others time to note who has ended, before this process ends for that."""
        time.sleep(_LINGERING_SECONDS)

    def _hear(self, number: int) -> Word:
        content = self._store.get(f"why/{number}").decode(errors="replace")
        signal_number, _, text = content.partition(" ")
        self._store.add(f"heard/{self._index}", 1)
        said = number == 0 or self._store.add(f"said/{number}", 0) > 0
        return Word(text, int(signal_number), said)

    def leave_word(self, word: Word) -> bool:
        """Say to the others why this process ends; return whether they can read it."""
        if self._index and 0 in self.ended():
            return False
        with contextlib.suppress(RuntimeError):
            self._store.set(f"why/{self._index}", f"{word.signal_number} {word.text}")
            self._store.add(f"word/{self._index}", 1)
            return True
        return False

    def heard(self, seconds: float) -> bool:
        """Wait so long until the others have read the word; return whether the first says it.

        The first process itself, which holds the store and says it, waits for all.
        """
        waiting = {0} if self._index else set(range(1, self._count))
        with contextlib.suppress(RuntimeError):
            self._await("heard", waiting, time.monotonic() + seconds)
            if self._index and self._store.add("heard/0", 0):
                return True
            self._store.add(f"said/{self._index}", 1)
        return False

    def _await(self, done: str, numbers: Set[int], deadline: float) -> None:
        """Wait until processes have said that this is done, or have ended; raises RuntimeError."""
        waiting = set(numbers)
        while waiting and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
            waiting -= {n for n in waiting if self._store.add(f"{done}/{n}", 0)}
            waiting -= set(self.ended())


@functools.lru_cache(maxsize=None)
def _place() -> str:
    """Return what names this boot of this machine, and the container; "" where it is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        names = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # no Linux
        return ""
    return f"{boot} {socket.gethostname()} {names}"


def _identity() -> str:
    """Return what names this process among all of its place."""
    return f"{_place()} {os.getpid()}" if _place() else ""


def _has_ended(identity: str) -> bool:
    """Tell whether the process of that identity is known to have ended."""
    place, _, number = identity.rpartition(" ")
    if not place or place != _place():
        return False  # of another machine, or container
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    except (OSError, MemoryError):
        return False
    return state in "ZX"
