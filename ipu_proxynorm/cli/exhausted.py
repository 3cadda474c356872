"""What a machine runs out of or a path cannot be, as one sentence with a way out."""

from __future__ import annotations

import errno
import os
from typing import Optional, Tuple

#: What runs out, by the system's error numbers and by words in the messages of torch and Python;
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
        (errno.ENOSPC, errno.EDQUOT),
        ("no space left on device", "shared memory", "bus error"),
        "no space is left on a disk or in shared memory, /dev/shm ({reason}); free some, or lower "
        "data.workers",
    ),
    (
        (errno.ENOMEM,),
        ("allocate memory", "unable to mmap"),
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


def exhausted(error: BaseException) -> Optional[str]:
    """Return what the machine lacks, and a way out, in a sentence; None: it is another error."""
    text = " ".join(str(error).split())
    reason = text[-160:] or type(error).__name__
    if isinstance(error, MemoryError):
        return _CAUSES[-1][2].format(reason=reason)
    if not isinstance(error, (OSError, RuntimeError)):
        return None
    number = getattr(error, "errno", None)
    if number in _PATHS and isinstance(error, OSError) and error.filename is not None:
        path = os.fspath(error.filename)
        shown = path if len(path) <= _SHOWN else f"{path[:_SHOWN]}..."
        return f"{shown!r} cannot be used ({error.strerror}); give another path"
    for numbers, words, sentence in _CAUSES:
        if number in numbers or any(word in text.lower() for word in words):
            return sentence.format(reason=reason)
    return None
