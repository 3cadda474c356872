"""Does a test see each row of the refusals, and does the table miss a place in the sources?

    python benchmarks/refusals.py [--sources POPTORCH] [--popart POPART]

Each row is disabled, then made to refuse every call that it looks at; a test must fail each time
(a row without a condition has only the first of these). With a checkout of PopTorch 3.4.0, every
ERROR, ERROR_ON and ERROR_ON_MSG in it must be a row's place or in ``refusal_places.txt``; with one
of PopART 3.4.0, so must every ``throw error`` of its operators.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Set, Tuple

from ipu_proxynorm.simulator.trace import handlers
from ipu_proxynorm.simulator.trace.handlers import table
from ipu_proxynorm.simulator.trace.handlers.refusal import Refusal

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "simulator" / "trace" / "test_handlers.py"
PLACES = Path(handlers.__file__).parents[1] / "data" / "refusal_places.txt"


def load_tests() -> Any:
    """Return the module of the table's tests."""
    spec = importlib.util.spec_from_file_location("test_handlers", TESTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["test_handlers"] = module
    spec.loader.exec_module(module)
    return module


def fails(test: Callable[..., None], *args: Any) -> bool:
    """Tell whether a test fails."""
    try:
        test(*args)
    except Exception:
        return True
    except BaseException as error:  # pytest's own failures are no Exception
        if type(error).__name__ != "Failed":
            raise
        return True
    return False


def replaced(row: Refusal, when: Callable[[Any], bool]) -> None:
    """Put a row with another condition in the place of a row of the same key."""
    for rows in (*table.FUNCTION_ROWS.values(), *table.OPERATOR_ROWS.values(), table.IN_PLACE_ROWS):
        for position, one in enumerate(rows):
            if one.key == row.key:
                rows[position] = row._replace(when=when)


def mutate(tests: Any) -> Tuple[int, List[str]]:
    """Return how many mutants there were, and those that no test saw."""
    count, alive = 0, []
    for row in handlers.ROWS:
        mutants = [("never", lambda call: False, tests.test_refused)]
        if looks_at_the_call(row):
            mutants.append(("always", lambda call: True, tests.test_the_nearest_is_accepted))
        for name, when, test in mutants:
            replaced(row, when)
            count += 1
            if not fails(test, row.key):
                alive.append(f"{row.key}: {name}")
            replaced(row, row.when)
    return count, alive


def looks_at_the_call(row: Refusal) -> bool:
    """Tell whether a row has a condition, rather than refuse whatever is called so."""
    return (lambda call: True).__code__.co_code != row.when.__code__.co_code


class Place(NamedTuple):
    """What becomes of some lines of a file of the sources."""

    file: str
    lines: str
    kind: str
    remark: str


def read_places() -> List[Place]:
    """Return the places that are no rows."""
    lines = PLACES.read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines if line and not line.startswith("#")]
    return [Place(*(cell.strip() for cell in row)) for row in rows]


def row_places() -> Set[Tuple[str, int]]:
    """Return the file and lines that rows name."""
    found = set()
    for row in handlers.ROWS:
        name = ""
        for file, line in re.findall(r"([\w/]+\.[\w.]+:|, )(\d+)\b", row.place):
            name = file.rstrip(":") if file != ", " else name
            root = "" if name.startswith("popart/") else "poptorch/source/"
            found.add((f"{root}{name}", int(line)))
    found.add(("poptorch/source/PopartCanonicalization.cpp", 223))  # UNREAD_RESULTS
    return found


def poptorch_lines(sources: Path) -> Iterator[Tuple[str, int]]:
    """Yield file and line of each place of PopTorch that raises an error."""
    pattern = re.compile(r"\bERROR(_ON|_ON_MSG)?\(")
    for folder in ("poptorch/source", "popart_compiler/source"):
        for path in sorted((sources / folder).rglob("*")):
            if path.suffix in (".cpp", ".hpp", ".inc"):
                for number, line in lines_of(path):
                    if pattern.search(line) and "#define" not in line:
                        yield str(path.relative_to(sources)), number


def popart_lines(sources: Path) -> Iterator[Tuple[str, int]]:
    """Yield file and line of each place of PopART's operators that raises an error."""
    folder = sources / "willow" / "src"
    for path in sorted((folder / "op").rglob("*.cpp")):
        for number, line in lines_of(path):
            if re.search(r"\bthrow error\(", line):
                yield f"popart/{path.relative_to(folder)}", number


def lines_of(path: Path) -> Iterator[Tuple[int, str]]:
    """Yield the lines of a file, numbered from 1."""
    yield from enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)


def account(places: Iterable[Tuple[str, int]]) -> Tuple[Counter, List[str]]:
    """Return how many places there are of each kind, and those that nothing says anything of."""
    named: Dict[Tuple[str, str], str] = {}
    for place in read_places():
        for line in place.lines.split(", "):
            named[(place.file, line)] = place.kind
    counts: Counter = Counter()
    missing = []
    rows = row_places()
    for file, number in places:
        kind = named.get((file, str(number))) or named.get((file, "*"))
        if (file, number) in rows:
            kind = "row"
        if kind is None:
            missing.append(f"{file}:{number}")
        else:
            counts[kind] += 1
    return counts, missing


def main() -> int:
    """Print the counts; 1 if a mutant lives or a place is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, help="checkout of PopTorch 3.4.0")
    parser.add_argument("--popart", type=Path, help="checkout of PopART 3.4.0")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    count, alive = mutate(load_tests())
    print(f"{len(handlers.ROWS)} rows, {count} mutants, {count - len(alive)} killed")
    for mutant in alive:
        print(f"alive: {mutant}")
    missing: List[str] = []
    for sources, lines in ((arguments.sources, poptorch_lines), (arguments.popart, popart_lines)):
        if sources is None:
            continue
        counts, unnamed = account(lines(sources))
        print(f"{sum(counts.values())} places: {dict(counts.most_common())}")
        for place in unnamed:
            print(f"missing: {place}")
        missing += unnamed
    return 1 if alive or missing else 0


if __name__ == "__main__":
    sys.exit(main())
