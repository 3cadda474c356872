"""The one program, as ``ipu-proxynorm``, ``python -m ipu_proxynorm`` and ``run_ipu.py``."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import traceback
import warnings
from typing import Any

from ipu_proxynorm.errors import UserError, program_name, say


def run() -> int:
    """Return the exit status of the command; Ctrl-C is one sentence while libraries load, too."""
    # Where a process of several ends, torch's C++ prints its own lines beside our sentence.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if any(action == "error" for action, *_ in warnings.filters) and not _shows_tracebacks():
        warnings.simplefilter("default")  # -W error: what a library warns of ends no run
    try:
        os.getcwd()
    except OSError as error:  # MKL would end the process in words of its own
        say(
            f"{program_name()}: error: the folder that it was started in is not there any more "
            f"({error.strerror}); change to another one (cd)"
        )
        return 2
    try:
        from ipu_proxynorm.cli.main import main
        from ipu_proxynorm.run.meeting import has_met
    except KeyboardInterrupt:
        say(f"{program_name()}: interrupted")
        return 130
    except (UserError, ImportError, OSError, MemoryError) as error:
        if _shows_tracebacks():
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, UserError):
            reason = (
                f"a library cannot be loaded ({reason}); install the package again, or give the "
                f"process more memory"
            )
        say(f"{program_name()}: error: {reason}")
        return 2
    sys.excepthook = show_traceback
    gc.freeze()  # what the libraries have made stays: no collection need look through it
    status = main()
    if has_met():
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status)
    return status


def _shows_tracebacks() -> bool:
    return "--traceback" in sys.argv


def show_traceback(*error: Any) -> None:
    """Print an error that no command expected."""
    say("".join(traceback.format_exception(*error)).rstrip("\n"))


if __name__ == "__main__":
    sys.exit(run())
