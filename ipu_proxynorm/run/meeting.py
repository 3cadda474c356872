"""How the processes of a run that were launched together meet: a store, attendance, gloo."""

from __future__ import annotations

import datetime
import os
import socket
import threading
import time
from typing import Callable, Generic, List, Optional, TypeVar, Union

import torch.distributed as dist

from ipu_proxynorm.backend import popdist
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.ipu import Instance, launched
from ipu_proxynorm.run.attendance import ROLL_CALL_SECONDS, Absent, Attendance, Word
from ipu_proxynorm.run.interruption import Interrupted
from ipu_proxynorm.run.processes import PATIENCE_SECONDS, Processes

Value = TypeVar("Value")

#: How long the processes wait for each other at the start.
MEETING_SECONDS = 120.0
#: How long the store of the first process may take to answer.
STORE_SECONDS = 15.0
#: How often one that connects looks whether another has ended, and how long what that one may have
#: been the last to need is waited for.
_LOOKING_SECONDS = 0.1
_ENDING_SECONDS = 1.0
_ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def connect(patience: Callable[[], float] = lambda: PATIENCE_SECONDS) -> Processes:
    """Meet the processes that were launched together with this one, if any were.

    Args:
        patience: returns how long one of them may keep the others waiting, seconds.

    Raises:
        UserError: the address is none, or not all processes come there.
    """
    instance = launched()
    started = os.environ.get("WORLD_SIZE", "1")
    if not instance.launched and started not in ("", "1"):
        raise UserError(
            f"WORLD_SIZE={started}: this is one of several processes, but not as torchrun (for the "
            f"simulator: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) or poprun (for IPUs) starts "
            f"them; use these, or unset WORLD_SIZE to work in this process alone"
        )
    if instance.count == 1:
        return Processes(instance)
    for name, value in _ADDRESS.items():
        os.environ.setdefault(name, value)
    attendance = _meet(instance, os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], patience())
    popdist.init()
    return Processes(instance, attendance)


def _meet(instance: Instance, address: str, port: str, patience: float) -> Attendance:
    """Connect ``torch.distributed``; return who is there."""
    place = f"MASTER_ADDR={address} MASTER_PORT={port}"
    if not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"{place}: expected a free port of the first process's machine, 1 to 65535")
    try:
        socket.getaddrinfo(address, int(port))
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{place}: there is no machine of that name ({error}); expected name or address of "
            f"the machine that the first process runs on, which torchrun sets"
        ) from error
    deadline = time.monotonic() + min(MEETING_SECONDS, patience)
    attendance: Optional[Attendance] = None
    try:
        store = _store(instance, address, int(port), deadline)
        # For gloo, which keeps a connection to itself while it waits for one who is gone.
        again = _connected(address, int(port), False, deadline)
        # torchrun may start all again while its store still holds the last attempt's keys.
        attempt = f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        attendance = Attendance(dist.PrefixStore(attempt, store), instance.index, instance.count)
        attendance.come(deadline)
        attendance.listen()
        _join(dist.PrefixStore(attempt, again), instance, attendance, patience)
        return attendance
    except Absent as absent:
        refusal = _not_met(place, instance, str(absent))
        refusal.quiet = absent.quiet
        raise refusal from absent
    except Interrupted as interrupted:
        word = Word(str(interrupted), interrupted.signal_number)
        if attendance is not None and instance.index == 0 and attendance.leave_word(word):
            attendance.heard(ROLL_CALL_SECONDS)
        raise
    except (RuntimeError, OSError) as error:
        lost = attendance.without_store() if attendance is not None else None
        if lost is not None:
            refusal = _not_met(place, instance, str(lost))
            refusal.quiet = lost.quiet
            raise refusal from error
        raise _not_met(place, instance, " ".join(str(error).split())[:160]) from error


def _not_met(place: str, instance: Instance, why: str) -> UserError:
    return UserError(
        f"{place}: the {instance.count} processes have not met there ({why}); expected the machine "
        f"and a free port of the first process, and all WORLD_SIZE={instance.count} processes to "
        f"be started within {MEETING_SECONDS:.0f} s or training.patience"
    )


def _store(instance: Instance, address: str, port: int, deadline: float) -> dist.Store:
    """Return the store at an address: torchrun's, or that of the first process.

    Raises:
        RuntimeError: the port is in use, or nothing answers there.
        OSError: likewise.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        left = datetime.timedelta(seconds=deadline - time.monotonic())
        store, _, _ = next(dist.rendezvous("env://", instance.index, instance.count, timeout=left))
        return store
    first = instance.index == 0
    if not first:
        _await_listener(address, port, deadline)
    return _connected(address, port, first, deadline)


def _connected(address: str, port: int, serves: bool, deadline: float) -> dist.Store:
    """Return the store at an address, served by this process where it ``serves``; see `_store`."""
    left = datetime.timedelta(seconds=deadline - time.monotonic())
    connecting: Attempt[dist.Store] = Attempt(
        lambda: dist.TCPStore(
            address, port, is_master=serves, timeout=left, wait_for_workers=False, multi_tenant=True
        )
    )
    # What listens there but is no store would be waited for, whatever the timeout.
    if not connecting.done(STORE_SECONDS):
        raise RuntimeError(f"what listens there has not answered for {STORE_SECONDS:.0f} s")
    return connecting.result()


def _join(store: dist.Store, instance: Instance, attendance: Attendance, patience: float) -> None:
    """Connect to all other processes.

    Raises:
        Absent: one has ended meanwhile; gloo would wait for it as long as its patience.
        RuntimeError: they cannot be reached.
    """
    connecting = Attempt(
        lambda: dist.init_process_group(
            "gloo",
            store=store,
            rank=instance.index,
            world_size=instance.count,
            timeout=datetime.timedelta(seconds=patience),
        )
    )
    while not connecting.done(_LOOKING_SECONDS):
        word = attendance.heard_word()
        if word is not None:
            raise Absent(word.text, quiet=word.said)
        gone = attendance.ended()
        # It may have ended as all others will: what is left of connecting then succeeds or fails.
        if gone and not connecting.done(_ENDING_SECONDS):
            raise attendance.absent()
    connecting.result()


_threads: List[threading.Thread] = []  # of attempts


def has_met() -> bool:
    """Tell whether this process has met others, or tried: then torch has threads of its own.

    One that comes back to Python while that ends aborts the process: gloo's, which lets go of the
    tensors of its last exchange, or an attempt that has not ended.
    """
    return bool(_threads)


class Attempt(Generic[Value]):
    """A call, in a thread of its own, that may never end; it is left alone then.

    Args:
        call: the call.

    Raises:
        RuntimeError: no more threads can be started.
    """

    def __init__(self, call: Callable[[], Value]) -> None:
        self._found: List[Union[Value, Exception]] = []
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()
        _threads.append(self._thread)

    def _run(self, call: Callable[[], Value]) -> None:
        try:
            self._found.append(call())
        except Exception as error:
            self._found.append(error)

    def done(self, seconds: float) -> bool:
        """Wait so long at most; tell whether it has ended."""
        self._thread.join(seconds)
        return bool(self._found)

    def result(self) -> Value:
        """Return what the call has returned; raises what it has raised."""
        (found,) = self._found
        if isinstance(found, Exception):
            raise found
        return found


def _await_listener(address: str, port: int, deadline: float) -> None:
    """Wait until somebody listens there; raises OSError where nobody does in time."""
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)
