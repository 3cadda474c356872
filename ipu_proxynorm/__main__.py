"""The one program, as ``ipu-proxynorm``, ``python -m ipu_proxynorm`` and ``run_ipu.py``."""

from __future__ import annotations

import sys


def run() -> int:
    """Return the exit status of the command; Ctrl-C is one sentence while libraries load, too."""
    try:
        from ipu_proxynorm.cli.main import main
    except KeyboardInterrupt:
        print("ipu-proxynorm: interrupted", file=sys.stderr)
        return 130
    except (ImportError, OSError, MemoryError) as error:
        if "--traceback" in sys.argv:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        print(
            f"ipu-proxynorm: error: a library cannot be loaded ({reason}); install the package "
            f"again, or give the process more memory",
            file=sys.stderr,
        )
        return 2
    return main()


if __name__ == "__main__":
    sys.exit(run())
