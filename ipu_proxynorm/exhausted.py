"""What a machine runs out of or a path cannot be, as one sentence with a way out."""

from __future__ import annotations

import errno
import os
import re
import resource
from pathlib import Path
from typing import Optional, Tuple

#: What runs out, by the system's error numbers and by patterns in the messages of torch and Python;
#: and what to do.
_CAUSES: Tuple[Tuple[Tuple[int, ...], Tuple[str, ...], str], ...] = (
    (
        (errno.EMFILE, errno.ENFILE),
        ("too many open files", "ancdata"),
        "no more files can be opened here ({reason}); raise the limit (ulimit -n), or lower "
        "data.workers",
    ),
    (
        (errno.EAGAIN,),
        ("can't start new thread", "resource temporarily unavailable"),
        "no more processes or threads can be started here ({reason}); raise the limit "
        "(ulimit -u), or lower data.workers",
    ),
    (
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        ("no space left on device", "shared memory", "bus error", "file too large"),
        "no space is left on a disk or in shared memory, /dev/shm ({reason}); free some, or lower "
        "data.workers",
    ),
    (
        (errno.ENOMEM,),
        ("allocate memory", "unable to mmap", "could not create a primitive(?! desc)"),
        "this machine's memory does not suffice ({reason}); lower ipu.micro_batch_size, "
        "data.image_size, model.width or data.workers",
    ),
)

#: What is wrong with a path, where no module of ours has said it in its own words.
_PATHS = (
    errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR,
    errno.ENOENT, errno.EROFS, errno.EEXIST, errno.ENXIO,
)  # fmt: skip
_SHOWN = 80
#: Of a thread, where the system does not limit it.
_STACK_BYTES = 2**21


def exhausted(error: BaseException) -> Optional[str]:
    """Return what the machine lacks, and a way out, in a sentence; None: it is another error."""
    text = " ".join(str(error).split())
    # A worker's error comes with its traceback, whose last line says what it was.
    said = str(error).strip().rpartition("\n")[2] if "Traceback" in text else text
    reason = _end_of(said) or type(error).__name__
    if "can't start new thread" in text and _address_space_is_full():
        return (
            f"no more threads can be started here, as there is no address space for them "
            f"({reason}); raise the limit (ulimit -v), or lower data.workers"
        )
    if isinstance(error, MemoryError):
        return _CAUSES[-1][2].format(reason=reason)
    if isinstance(error, (ImportError, SystemError)) and _address_space_is_full():
        return _CAUSES[-1][2].format(reason=reason)
    if not isinstance(error, (OSError, RuntimeError)):
        return None
    number = getattr(error, "errno", None)
    if number in _PATHS and isinstance(error, OSError) and error.filename is not None:
        path = os.fspath(error.filename)
        shown = path if len(path) <= _SHOWN else f"{path[:_SHOWN]}..."
        return f"{shown!r} cannot be used ({error.strerror}); give another path"
    for numbers, words, sentence in _CAUSES:
        if number in numbers or any(re.search(word, text.lower()) for word in words):
            return sentence.format(reason=reason)
    if isinstance(error, RuntimeError) and _address_space_is_full():
        # Libraries have more words for it than can be listed.
        return _CAUSES[-1][2].format(reason=reason)
    return None


def _end_of(text: str, most: int = 160) -> str:
    """Return the last words of a text."""
    return text if len(text) <= most else f"... {text[-most:].partition(' ')[2]}"


def _address_space_is_full() -> bool:
    """Tell whether this process's limit of address space leaves no room for two more threads.

    The system says the same where the number of threads is what is limited.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return False
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = 2 * (_STACK_BYTES if stack == resource.RLIM_INFINITY else stack)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # no Linux, or no more files
        return True
    return pages * resource.getpagesize() + wanted > limit


def unwritten(what: str, error: BaseException, done: str = "written") -> str:
    """Return the sentence on a file of a run that cannot be written, with what would help.

    Args:
        what: the file, as the sentence names it.
        error: the system's, or one that came of it.
        done: what could not be done.
    """
    cause: Optional[BaseException] = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    reason = cause.strerror if isinstance(cause, OSError) else str(error).partition("\n")[0]
    number = getattr(cause, "errno", None)
    way_out = "free the disk or choose another folder with runs=FOLDER"
    if number in (errno.EMFILE, errno.ENFILE):
        way_out = "raise the limit (ulimit -n), or lower data.workers"
    elif number == errno.ENOMEM:
        way_out = "free some memory, or lower data.workers"
    return f"{what} cannot be {done} ({reason}); {way_out}"
