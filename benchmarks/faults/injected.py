"""Faults of a process, its files and its machine; all of it inside that process.

What needs a superuser (mounts, another user's limits) says so, and is left out elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, List, Tuple

from phases import Act, Place

from ipu_proxynorm.data import image_set

#: An unprivileged user.
NOBODY = 65534


def send(number: int) -> Act:
    """Return the fault of a signal to this process."""
    return lambda place: os.kill(os.getpid(), number)


def send_soon(number: int) -> Act:
    """Return the fault of a signal some milliseconds later, wherever the process is then."""
    return lambda place: threading.Timer(0.005, os.kill, (os.getpid(), number)).start()


def send_twice(number: int) -> Act:
    """Return the fault of a signal to this process that is sent again at once."""

    def act(place: Place) -> None:
        for delay in (0.005, 0.02):
            threading.Timer(delay, os.kill, (os.getpid(), number)).start()

    return act


def lose_reader(place: Place) -> None:
    """Close the other end of standard output: ``| head`` ends, a connection is lost."""
    if place.reader >= 0:
        os.close(place.reader)
        place.reader = -1  # the number may become another file's


def keep_reader_here(place: Place) -> None:
    """Let no child of this process hold the other end of standard output."""
    os.register_at_fork(after_in_child=lambda: lose_reader(place))


def close_streams(place: Place) -> None:
    """Close standard output and error."""
    os.close(1)
    os.close(2)


def print_to_terminal(place: Place) -> None:
    """Let a terminal be standard output and error."""
    place.reader, terminal = os.openpty()
    print_to(terminal, 1, 2)
    os.close(terminal)
    keep_reader_here(place)


def fill(folder: Path) -> None:
    """Write to a folder's disk until nothing fits any more."""
    with (folder / "ballast").open("wb", buffering=0) as stream:
        for size in (2**16, 2**12, 1):
            while _fits(stream, bytes(size)):
                pass


def _fits(stream: Any, content: bytes) -> bool:
    try:
        return stream.write(content) > 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


def limit_file_size(place: Place) -> None:
    """Let no file grow beyond 32 KiB, as a quota would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, 2**15))


def delete_run(place: Place) -> None:
    """Delete the run's folder."""
    shutil.rmtree(place.folder, ignore_errors=True)


def forbid_writing(place: Place) -> None:
    """Take away the right to write to the run's folder, and to make it anew."""
    for path in (place.folder, place.runs):
        if path.exists():
            path.chmod(0o555)


def exhaust_files(place: Place) -> None:
    """Let no further file be opened."""
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))


def exhaust_threads(place: Place) -> None:
    """Let no further process or thread be started."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def exhaust_memory(place: Place) -> None:
    """Let the address space grow by 256 KiB at most."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 2**18
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def exhaust_shared_memory(place: Place) -> None:
    """Fill /dev/shm."""
    fill(Path("/dev/shm"))


def fail_disk(place: Place) -> None:
    """Let the disk report an error whenever it is asked to keep what was written."""

    def fsync(number: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    os.fsync = fsync


def set_clock_back(place: Place) -> None:
    """Set the clock of this process back by an hour."""
    _set_clock(-3600)


def set_clock_ahead(place: Place) -> None:
    """Set the clock of this process ahead by ten years."""
    _set_clock(10 * 365 * 24 * 3600)


def _set_clock(seconds: int) -> None:
    real = time.time
    time.time = lambda: real() + seconds


def workers() -> List[int]:
    """Return the ids of this process's children."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def signal_worker(number: int) -> Act:
    """Return the fault of a signal to a data worker, the one that was started last."""
    return lambda place: os.kill(max(workers()), number)


def flag(place: Place) -> Path:
    """Return the file that makes the data set raise where `raise_when_flagged` prepared it."""
    return place.images / "raise"


def raise_when_flagged(place: Place) -> None:
    """Let reading an image raise what no reader of images does, once the flag is there."""
    inner, path = image_set.ImageSet.at, str(flag(place))

    def at(*arguments: Any) -> Any:
        if os.path.exists(path):
            raise ValueError("an image from another world")
        return inner(*arguments)

    image_set.ImageSet.at = at  # type: ignore[method-assign]


def raise_flag(place: Place) -> None:
    """Let all images raise from now on."""
    flag(place).touch()


def keep_no_images(place: Place) -> None:
    """Read each image from its file each time."""
    image_set.cache_room = lambda: 0


def damage_image(place: Place) -> None:
    """Cut off half of an image of training and of one of validation."""
    for part in ("train", "val"):
        path = sorted((place.images / part).glob("*/*.png"))[0]
        os.truncate(path, path.stat().st_size // 2)


def delete_images(place: Place) -> None:
    """Delete the data set, or rather move it where nobody looks."""
    place.images.rename(place.images.with_name("moved"))


def delete_records(place: Place) -> None:
    """Delete what a run logs."""
    (place.folder / "metrics.jsonl").unlink()
    shutil.rmtree(place.folder / "tensorboard")


def take_temporary_folder(place: Place) -> None:
    """Delete the folder for temporary files under way."""
    shutil.rmtree(tempfile.gettempdir())


def own_temporary_folder(place: Place) -> None:
    """Give this process a folder for temporary files of its own."""
    tempfile.tempdir = tempfile.mkdtemp(dir=place.images)


def stop_for_a_while(place: Place) -> None:
    """Be stopped as by Ctrl-Z, and let go on two seconds later."""
    waker = os.fork()
    if not waker:
        time.sleep(2)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)
    os.waitpid(waker, 0)


def forbid_locks_and_links(place: Place) -> None:
    """Let the file system know neither locks nor hard links, as some of networks do not."""

    def none(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    os.link = fcntl.flock = none  # type: ignore[assignment]


def use_no_more_inodes(place: Place) -> None:
    """Make files until there is room for no further name."""
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (place.runs / f"ballast{number}").touch()


def occupy(name: str, kind: str) -> Act:
    """Return the fault of a file of the run replaced with something else of that name."""

    def act(place: Place) -> None:
        path = place.folder / name
        if path.is_file():
            path.unlink()
        if kind == "folder":
            path.mkdir(exist_ok=True)
            (path / "something").touch()
        elif not os.path.lexists(path):
            path.symlink_to("nowhere/at/all")

    return act


def replace_by_pipes(pattern: str) -> Act:
    """Return the fault of files of the run replaced with pipes that nobody reads."""

    def act(place: Place) -> None:
        for path in place.folder.glob(pattern):
            path.unlink()
            os.mkfifo(path)

    return act


def replace_images_by_pipes(place: Place) -> None:
    """Move the images, and put pipes that nobody writes to in their place."""
    delete_images(place)
    for path in sorted(place.images.with_name("moved").glob("*/*/*.png")):
        pipe = place.images / path.relative_to(place.images.with_name("moved"))
        pipe.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(pipe)


def rename_run(place: Place) -> None:
    """Give the run's folder another name."""
    place.folder.rename(place.folder.with_name("renamed"))


_LIBC: Any = ctypes.CDLL(None, use_errno=True)
_NEW_MOUNTS, _PRIVATE, _RECURSIVE, _BIND, _REMOUNT, _READ_ONLY = (
    *(0x20000, 0x40000, 0x4000, 0x1000, 32, 1),
)


def _mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    if _LIBC.mount(source.encode(), str(target).encode(), kind.encode(), flags, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def own_mounts(place: Place) -> None:
    """Let what this process mounts be its own affair."""
    if _LIBC.unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("none", Path("/"), "", _PRIVATE | _RECURSIVE)


def may_mount() -> bool:
    """Tell whether this user may mount, tried in a process of its own."""
    child = os.fork()
    if not child:
        try:
            own_mounts(Place(Path(), Path(), 0))
            _mount("tmpfs", Path("/tmp"), "tmpfs", 0, "size=64k")
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def mount_read_only(place: Place) -> None:
    """Make the file system that holds the run read-only."""
    _mount(str(place.runs), place.runs, "", _BIND)
    _mount("none", place.runs, "", _BIND | _REMOUNT | _READ_ONLY)


def small_shared_memory(place: Place) -> None:
    """Give this process a /dev/shm of 2 MiB."""
    own_mounts(place)
    _mount("tmpfs", Path("/dev/shm"), "tmpfs", 0, "size=2m")


def become_nobody(place: Place) -> None:
    """Become an unprivileged user, who may read what the superuser may, and no more."""
    keep_capabilities, read_all = 8, 1 << 2
    _LIBC.prctl(keep_capabilities, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(read_all, read_all, 0, 0, 0, 0)
    if _LIBC.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def print_to(stream: int, *numbers: int) -> None:
    """Let descriptors of standard streams be that file's."""
    for number in numbers:
        os.dup2(stream, number)


def nothing(place: Place) -> None:
    """Do nothing."""


STOPPED_BY = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU")


def signals() -> List[Tuple[str, int]]:
    """Return the signals that ask a run to stop, by name."""
    return [(name, getattr(signal, name)) for name in STOPPED_BY]


def die_at_once(place: Place) -> None:
    """Be killed before the program has begun."""
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
