"""What a machine lacks is one sentence, whatever library finds it out."""

import errno
import os
import resource

import pytest

from ipu_proxynorm.exhausted import exhausted, unwritten


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "this machine's memory does not suffice (MemoryError); lower ipu.micro"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory does"),
        (RuntimeError("could not create a primitive"), "memory does not suffice"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory does not suffice"),
        (OSError(errno.EMFILE, "Too many open files"), "raise the limit (ulimit -n)"),
        (RuntimeError("received 0 items of ancdata"), "no more files can be opened"),
        (RuntimeError("can't start new thread"), "no more processes or threads can be started"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "(ulimit -u)"),
        (OSError(errno.ENOSPC, "No space left on device"), "a disk or in shared memory, /dev/shm"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "/dev/shm"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "x...' cannot be used"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root"),
            "'/root' cannot be used (Per",
        ),
    ],
)
def test_a_sentence_names_it_and_a_way_out(error, words):
    said = exhausted(error)
    assert words in said
    assert "\n" not in said
    assert len(said) < 300


def test_no_thread_for_want_of_address_space_is_not_put_down_to_processes(monkeypatch):
    limits = {resource.RLIMIT_AS: 2**20, resource.RLIMIT_STACK: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    said = exhausted(RuntimeError("can't start new thread"))
    assert "no address space" in said
    assert "(ulimit -v)" in said
    limits[resource.RLIMIT_AS] = 2**50
    assert "(ulimit -u)" in exhausted(RuntimeError("can't start new thread"))


def test_without_address_space_what_a_library_cannot_do_is_put_down_to_memory(monkeypatch):
    limits = {resource.RLIMIT_AS: 2**20, resource.RLIMIT_STACK: 2**23}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    errors = [RuntimeError("no such luck"), ImportError("failed to map segment from lib.so")]
    for error in errors:
        assert "this machine's memory does not suffice" in exhausted(error)
    assert exhausted(OSError(errno.EIO, os.strerror(errno.EIO))) is None
    limits[resource.RLIMIT_AS] = resource.RLIM_INFINITY
    assert [exhausted(error) for error in errors] == [None, None]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        RuntimeError("could not create a primitive descriptor for a convolution"),
        ValueError("no"),
        OSError(errno.EIO, os.strerror(5)),
    ],
)
def test_other_errors_are_not_hidden(error):
    assert exhausted(error) is None


def test_of_a_long_error_the_last_words_are_shown():
    said = exhausted(RuntimeError("first " + "word " * 100 + "no space left on device"))
    assert "(... word " in said


def test_of_a_workers_error_the_last_line_is_shown():
    text = (
        "Caught RuntimeError in 0.\nOriginal Traceback\n  ^^^\nRuntimeError: shared memory is full"
    )
    assert "/dev/shm (RuntimeError: shared memory is full);" in exhausted(RuntimeError(text))


def test_what_cannot_be_written_says_what_would_help():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        raise RuntimeError("[enforce fail] unexpected pos 64 vs 0") from full
    except RuntimeError as error:
        said = unwritten("checkpoint 'last.pt'", error)
    assert said.startswith("checkpoint 'last.pt' cannot be written (No space left on device); free")
    limited = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    said = unwritten("'metrics.jsonl'", limited, "kept")
    assert said == (
        "'metrics.jsonl' cannot be kept (Too many open files); raise the limit (ulimit -n), or "
        "lower data.workers"
    )
    assert "(odd); free the disk" in unwritten("it", RuntimeError("odd\nmore"))
