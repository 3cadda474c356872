"""Run tests where every misuse of memory faults: what is read unwritten, freed, or out of bounds.

    python benchmarks/poisoned_memory.py [PYTEST ARGUMENTS]
    python benchmarks/poisoned_memory.py --program PROGRAM.py [ARGUMENTS]

torch's tensors get guard pages (``guarded_memory.c``, compiled with ``cc``), fresh memory is NaN,
and what the C library hands out and takes back is filled. A fault ends the run with Python's stack.
For Linux with the GNU C library. Without arguments the whole suite runs, in several times its time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List

HERE = Path(__file__).parent


def compiled(folder: Path) -> Path:
    """Compile the allocator into a folder and return the library."""
    library = folder / "guarded_memory.so"
    source = HERE / "guarded_memory.c"
    subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True
    )
    return library


def command(arguments: List[str]) -> List[str]:
    """Return what is to be run."""
    if arguments[:1] == ["--program"]:
        return [sys.executable, *arguments[1:]]
    return [sys.executable, "-m", "pytest", "-q", "-x", *arguments]


def main(arguments: List[str]) -> int:
    """Run the command and return its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(
            os.environ,
            LD_PRELOAD=str(compiled(Path(folder))),
            MALLOC_PERTURB_="165",
            PYTHONFAULTHANDLER="1",
        )
        ended = subprocess.run(command(arguments), env=environment, check=False)
    if ended.returncode < 0:
        print(f"killed by signal {-ended.returncode}: memory was misused", file=sys.stderr)
    return abs(ended.returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
