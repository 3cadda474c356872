"""What is private to an object is read and set by its own module only, the simulator aside."""

import ast
import re
from pathlib import Path

import pytest

import ipu_proxynorm

PACKAGE = Path(ipu_proxynorm.__file__).parent
PRIVATE = re.compile(r"_[A-Za-z]\w*$")

# A named tuple's methods are public: the underscore keeps them apart from its fields.
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}

# Private names of other people's objects, by module, and why there is no public way.
POPTORCH = "PopTorch has no public way to ask; read as 3.4 has it, named with its place"
TORCH = "torch has no public way to ask, or none that tells a registration from a module"
PYTHON = "Python has no public way to end a process at once, nor to know what it does at its end"
ALLOWED = {
    "__main__.py": (PYTHON, {"_exit", "_run_exitfuncs"}),
    "data/loader.py": (PYTHON, {"_exit", "_config"}),
    "data/watch.py": (TORCH, {"_workers"}),
    "ipu/options.py": (POPTORCH, {"_Popart"}),
    "memory/options.py": (POPTORCH, {"_execution_strategy", "_Popart"}),
    "memory/blocks.py": (
        POPTORCH,
        {"_execution_strategy", "_stages_manager", "_current_ipu", "_forward_pre_hooks"}
        | {"_user_id", "_ipu_id", "_ipu", "_stage_id"},
    ),
    "memory/recorder.py": (TORCH, {"_schema", "_cdata"}),
    "norm/folding.py": (TORCH, {"_parameters", "_buffers"}),
    "norm/convert/layers.py": (TORCH, {"_modules", "_parameters", "_buffers"}),
    "norm/activations.py": (TORCH, {"_C", "_nn"}),
    "norm/places.py": (TORCH, {"_modules"}),
    "norm/sharing.py": (TORCH, {"_forward_hooks", "_forward_pre_hooks"}),
    "norm/execution.py": (
        TORCH,
        {"_C", "_functorch", "_current_level", "_dispatch_keys"}
        | {"_len_torch_dispatch_stack", "_len_torch_function_stack"},
    ),
}


def own_names(tree):
    """Names that the module itself defines or gives to ``self``: its classes may share them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def is_own(node):
    """Whether an object is ``self``, ``cls`` or ``super()``."""
    if isinstance(node, ast.Name):
        return node.id in ("self", "cls")
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "super"


def private_accesses(source):
    """Yield line and name of each private attribute of another module's object."""
    tree = ast.parse(source)
    own = own_names(tree)
    for node in ast.walk(tree):
        name = None
        if isinstance(node, ast.Attribute) and not is_own(node.value):
            name = node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("attr"):
            named = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
            name = named[0] if named else None
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ipu_proxynorm"):
            name = next((a.name for a in node.names if PRIVATE.match(a.name)), None)
        if isinstance(name, str) and PRIVATE.match(name) and name not in own | NAMED_TUPLE:
            yield node.lineno, name


def modules():
    for path in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE / "models").glob("*.py")]):
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith("simulator/"):
            yield place, path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    [
        "layer._shared = None",
        "x = getattr(options, '_values', {})",
        "from ipu_proxynorm.run.state import _hidden",
        "setattr(error, '_quiet', True)",
    ],
)
def test_each_kind_is_seen(line):
    assert list(private_accesses(line))


def test_no_module_reads_or_sets_what_is_private_to_another():
    found = {}
    for place, source in modules():
        for line, name in private_accesses(source):
            found.setdefault(place, {}).setdefault(name, line)
    assert len(found) > 3
    wrong = {
        f"{place}:{line}": name
        for place, names in found.items()
        for name, line in names.items()
        if name not in ALLOWED.get(place, ("", ()))[1]
    }
    assert wrong == {}
    unused = {
        place: allowed - set(found.get(place, ()))
        for place, (_, allowed) in ALLOWED.items()
        if allowed - set(found.get(place, ()))
    }
    assert unused == {}, "allowed without need"
