"""The folder of a run: configuration, metrics and checkpoints, each under a fixed name."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import warnings
import weakref
from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Set, Union

from ipu_proxynorm.config import RunConfig, dump, load
from ipu_proxynorm.errors import UserError, UserNotice
from ipu_proxynorm.exhausted import unwritten
from ipu_proxynorm.files.checkpoint import Checkpoint, save_checkpoint
from ipu_proxynorm.files.events import EventFile
from ipu_proxynorm.files.whole import appending, replacing
from ipu_proxynorm.run.state import STATE, read_state

CONFIG, METRICS, TENSORBOARD = "config.yaml", "metrics.jsonl", "tensorboard"
#: Of `ipu_proxynorm.analysis`, where it was asked to record.
POWER = "power.jsonl"
CHECKPOINTS = ("last", "best")
#: What file systems say that know no locks: Lustre mounted without them, some of NFS's and FUSE's.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)


#: Open folders that are locked. A forked child must not hold them: data workers outlive a run
#: that is killed, and would keep it from being resumed.
_locks: Set[int] = set()


def _holder(folder: Path) -> str:
    """Return which process trains a run, in parentheses, as far as its record tells."""
    state = read_state(folder)
    if state is None or not state.describe().startswith("running"):
        return ""
    return f" (process {state.process} on {state.host})"


def _unlock(folder: int) -> None:
    if folder in _locks:  # not so in a forked child, where the number may be another file's
        _locks.remove(folder)
        os.close(folder)


def _leave_locks() -> None:
    """Close, in a forked child, what its parent has locked: the lock stays the parent's."""
    for folder in _locks:
        os.close(folder)
    _locks.clear()


os.register_at_fork(after_in_child=_leave_locks)


class RunDirectory:
    """``runs/<name>/``: ``config.yaml``, ``metrics.jsonl``, ``tensorboard/`` and checkpoints.

    ``last.pt`` is the newest checkpoint, ``last-1.pt`` the one before it, and so on; ``best.pt``
    is that of the best epoch.

    Args:
        path: the folder.
        writes: False for a process that leaves it to another one of the run to write.
    """

    def __init__(self, path: Union[str, Path], writes: bool = True) -> None:
        self.path, self._writes = Path(path), writes
        self._events: Optional[EventFile] = None
        self._lock: Optional[Callable[[], Any]] = None
        self._purge_step: Optional[int] = None

    @classmethod
    def create(cls, config: RunConfig, overwrite: bool = False) -> RunDirectory:
        """Make the folder of a new run and write its resolved configuration.

        Raises:
            UserError: the folder holds a run already and ``overwrite`` is False, or it cannot
                be written, or another process writes to it.
        """
        directory = cls(Path(config.runs, config.name))
        taken = directory._contents()
        if taken and not overwrite:
            raise UserError(
                f"name={config.name}: {str(directory.path)!r} already holds a run "
                f"({', '.join(taken)}); choose another name=..., go on with it by --resume, or "
                f"pass --overwrite"
            )
        try:
            directory.path.mkdir(parents=True, exist_ok=True)
            directory._acquire()
            for name in taken:
                target = directory.path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink()
            directory._write_config(config)
        except OSError as error:
            raise directory._unwritable(config.runs, error) from error
        return directory

    @classmethod
    def reopen(cls, config: RunConfig) -> RunDirectory:
        """Open the folder of a run to go on with it; make it if there is none.

        Raises:
            UserError: it cannot be written, or another process writes to it.
        """
        directory = cls.held(config)
        directory.go_on(config)
        return directory

    @classmethod
    def held(cls, config: RunConfig) -> RunDirectory:
        """Keep other processes out of the folder of a run, if there is one, and change nothing.

        What is read there is then what the run goes on from: nobody writes the next checkpoint.

        Raises:
            UserError: it cannot be read, or another process writes to it.
        """
        directory = cls(Path(config.runs, config.name))
        try:
            if directory.path.exists():
                directory._acquire()
        except OSError as error:
            raise directory._unwritable(config.runs, error) from error
        return directory

    def go_on(self, config: RunConfig) -> None:
        """Write the configuration with which the run goes on; make the folder if there is none.

        Raises:
            UserError: it cannot be written, or another process writes to it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._acquire()
            self._write_config(config)
        except OSError as error:
            raise self._unwritable(config.runs, error) from error

    def _write_config(self, config: RunConfig) -> None:
        with replacing(self.path / CONFIG) as stream:
            stream.write(dump(config).encode())

    def _unwritable(self, runs: str, error: OSError) -> UserError:
        return UserError(
            f"runs={runs}: {str(self.path)!r} cannot be written ({error.strerror}); choose another "
            f"folder with runs=FOLDER"
        )

    def _acquire(self) -> None:
        """Keep other processes out until this one ends, however it ends."""
        folder = os.open(self.path, os.O_RDONLY)
        _locks.add(folder)
        self._lock = weakref.finalize(self, _unlock, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise UserError(
                f"{str(self.path)!r}: another process is training this run{_holder(self.path)}; "
                f"wait for it, stop it, or choose another name=..."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"{str(self.path)!r}: its file system has no locks ({error.strerror}): see to it "
                f"that no other process trains this run",
                UserNotice,
                stacklevel=2,
            )

    def _contents(self) -> List[str]:
        """Return which of a run's own files are there; nothing else is ever removed."""
        names = [CONFIG, METRICS, TENSORBOARD, STATE, POWER]
        return [name for name in names if (self.path / name).exists()] + [
            f"{name}.pt" for name in self.checkpoints()
        ]

    def checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint: ``last``, ``last-1``, ... or ``best``."""
        return self.path / f"{name}.pt"

    def checkpoints(self) -> List[str]:
        """Return the names of the checkpoints that are there, the newest first, ``best`` last."""
        older = sorted(
            (int(number), path.stem)
            for path in self.path.glob("last-*.pt")
            for number in [path.stem.partition("-")[2]]
            if number.isdecimal()
        )
        names = ["last", *(name for _, name in older), "best"]
        return [name for name in names if self.checkpoint(name).exists()]

    def save(self, checkpoint: Checkpoint, best: bool = False, keep: int = 1) -> None:
        """Write ``last.pt``, and ``best.pt`` before it; keep ``keep`` of the last.

        At every instant ``last.pt`` is a whole checkpoint, of this or of the one before.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        if best:
            save_checkpoint(self.checkpoint("best"), checkpoint)
        try:
            for number in range(keep - 1, 0, -1):
                source = self.checkpoint("last" if number == 1 else f"last-{number - 1}")
                if source.exists():
                    _link(source, self.checkpoint(f"last-{number}"))
        except OSError as error:
            what = f"checkpoint {str(source)!r}"
            raise UserError(unwritten(what, error, "kept")) from error
        save_checkpoint(self.checkpoint("last"), checkpoint)

    def config(self) -> RunConfig:
        """Read the run's resolved configuration.

        Raises:
            UserError: the folder is not a run's.
        """
        if not (self.path / CONFIG).is_file():
            raise UserError(
                f"RUN_DIR {str(self.path)!r}: no {CONFIG} in it; expected the folder of a run, "
                f"e.g. runs/quickstart"
            )
        return load(self.path / CONFIG)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``, and its numbers to TensorBoard as ``kind/name``.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        if not self._writes:
            return
        try:
            with appending(self.path / METRICS) as stream:
                stream.write((json.dumps({"kind": kind, "step": step, **values}) + "\n").encode())
        except OSError as error:
            raise self._unwritten(METRICS, error) from error
        scalars = {f"{kind}/{name}": value for name, value in values.items() if name != "step"}
        try:
            self._event_file().add(step, scalars)
        except OSError as error:
            raise self._unwritten(TENSORBOARD, error) from error

    def _event_file(self) -> EventFile:
        """Return TensorBoard's file, another one where it was deleted under way."""
        folder = self.path / TENSORBOARD
        if self._events is not None and not self._events.path.exists() and self.path.exists():
            gone = self._events.path if folder.exists() else folder
            self._events = None
            warnings.warn(
                f"{str(gone)!r} was deleted: its steps until here are in {METRICS} alone",
                UserNotice,
                stacklevel=3,
            )
        if self._events is None:
            self._events = EventFile(folder, self._purge_step)
        return self._events

    def _unwritten(self, name: str, error: OSError) -> UserError:
        return UserError(unwritten(repr(str(self.path / name)), error))

    @property
    def metrics_bytes(self) -> int:
        """Length of the metrics file."""
        path = self.path / METRICS
        return path.stat().st_size if path.exists() else 0

    def rewind(self, metrics_bytes: int, step: int) -> None:
        """Forget what was logged after host call ``step``, when the metrics were that long.

        Raises:
            UserError: the metrics cannot be written.
        """
        if not self._writes:
            return
        try:
            if self.metrics_bytes > metrics_bytes:
                os.truncate(self.path / METRICS, metrics_bytes)
            self._forget_after(step)
        except OSError as error:
            raise self._unwritten(METRICS, error) from error
        self._purge_step = step + 1

    def _forget_after(self, step: int) -> None:
        """Cut off lines of later steps: where the file was rotated, its length says nothing."""
        path = self.path / METRICS
        if not path.is_file():  # a device may have no end
            return
        lines = path.read_bytes().splitlines(keepends=True)
        kept = len(lines)
        while kept and _is_after(lines[kept - 1], step):
            kept -= 1
        if kept < len(lines):
            os.truncate(path, sum(map(len, lines[:kept])))

    def close(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            self._lock()
            self._lock = None


def _is_after(line: bytes, step: int) -> bool:
    """Tell whether a line of the metrics is of a later step, or is not whole."""
    try:
        return json.loads(line)["step"] > step
    except (ValueError, KeyError, TypeError):
        return not line.endswith(b"\n")


def _link(source: Path, target: Path) -> None:
    """Make ``target`` another name of ``source``, in place of what had the name."""
    temporary = target.with_name(f".{target.name}.part")
    temporary.unlink() if temporary.exists() else None
    try:
        os.link(source, temporary)
    except OSError:  # a file system without links
        shutil.copy2(source, temporary)
    os.replace(temporary, target)
