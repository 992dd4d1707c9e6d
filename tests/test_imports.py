"""The package's rooms and the one way in which they may import each other."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import phicalc

PACKAGE = Path(phicalc.__file__).parent

GROUND = ["errors", "fields", "units", "envelope"]
CHECKS = [
    "allocator",
    "archive",
    "checks",
    "conditions",
    "device",
    "files",
    "modes",
    "signals",
    "support",
    "threads",
]

# Room → what it may import of phicalc. A file belongs to the longest name that fits it. An entry
# lets in what lies below it too: "electrostatics.eigenbasis" that one file, "data" the whole room.
ROOMS = {
    "errors": [],
    "fields": [],
    "units": [],
    "envelope": [],
    "archive": GROUND,
    "checks": GROUND,
    "conditions": ["checks", *GROUND],
    "support": ["checks", *GROUND],
    "allocator": GROUND,
    "device": GROUND,
    "files": GROUND,
    "geometric": GROUND,
    "modes": GROUND,
    "threads": GROUND,
    "signals": GROUND,
    "data": ["geometric", *CHECKS, *GROUND],
    "nn": ["geometric", *GROUND],
    "electrostatics": GROUND,
    "model": ["nn", "electrostatics", *CHECKS, *GROUND],
    "metadata": [*CHECKS, *GROUND],
    "artifact": [
        "metadata", "model", "electrostatics.charge_solvers", *CHECKS, *GROUND,
    ],
    "export": ["artifact", "metadata", "model", "data", *CHECKS, *GROUND],
    "train": ["artifact", "metadata", "model", "data", "geometric", *CHECKS, *GROUND],
    "evaluator": [
        "artifact", "metadata", "data.neighbours", "electrostatics.eigenbasis", *CHECKS, *GROUND,
    ],
    "response": ["evaluator", "artifact", "metadata", *CHECKS, *GROUND],
    "committee": GROUND,
    "calculator": [
        "response", "evaluator", "committee", "artifact", "electrostatics.eigenbasis", *CHECKS,
        *GROUND,
    ],
    "prediction": ["response", "artifact", "data", "geometric", *CHECKS, *GROUND],
    "workflows": ["errors", "archive", "checks", "files", "signals"],
    "bench_box": [
        "calculator", "evaluator", "export", "workflows", "artifact", "model", *CHECKS, *GROUND,
    ],
    "bench": ["bench_box", "metadata", *CHECKS, *GROUND],
    "cli": [
        "train", "export", "calculator", "prediction", "workflows", "bench", "metadata", "model",
        "data", *CHECKS, *GROUND,
    ],
}  # fmt: skip


def name_of(path: Path) -> str:
    """The module's dotted name inside phicalc, '' for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str | None:
    return max((room for room in ROOMS if within(module, room)), key=len, default=None)


def imports(module: str, source: str, is_package: bool) -> set[str]:
    """Every module of phicalc that this one imports, wherever in the file the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ("phicalc." + module).split(".") if module else ["phicalc"]
                parents = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if within(target, "phicalc"):
                found.add(existing(target.removeprefix("phicalc").removeprefix(".")))
    return found


def existing(name: str) -> str:
    """The module that a dotted name lies in: `fields.ENERGY` lies in `fields`."""
    while name not in MODULES and "." in name:
        name = name.rpartition(".")[0]
    return name if name in MODULES else ""


def upstream_modules() -> set[str]:
    """Every module of another package that phicalc imports somewhere."""
    found: set[str] = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    return {name for name in found if not within(name, "phicalc")}


class WithoutTypeChecking(ast.NodeTransformer):
    """Leaves out what stands under `if TYPE_CHECKING:`."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def imports_of(module: str, typing: bool = True) -> set[str]:
    path = MODULES[module]
    source = path.read_text(encoding="utf-8")
    if not typing:
        source = ast.unparse(WithoutTypeChecking().visit(ast.parse(source)))
    return imports(module, source, path.name == "__init__.py")


def forbidden(module: str, targets: set[str]) -> list[str]:
    room = room_of(module)
    assert room is not None, f"{module} is in no room; give it one in ROOMS"
    allowed = [room, *ROOMS[room]]
    return sorted(t for t in targets if t and not any(within(t, room) for room in allowed))


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_point_one_way(module):
    targets = imports_of(module)
    assert not forbidden(module, targets), f"{module} must not import {forbidden(module, targets)}"


def test_no_cycle_between_modules():
    """Imports for type checkers alone may be mutual: they point one way between rooms, though."""
    graph = {module: imports_of(module, typing=False) - {""} for module in MODULES if module}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_rooms_themselves_have_no_cycle():
    graph = {room: {room_of(entry) for entry in entries} for room, entries in ROOMS.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("nn.painn", "from phicalc.electrostatics import phi"),
        ("electrostatics.phi", "from ..nn import radial"),
        ("data.graph", "import phicalc.model.potential"),
        ("workflows.md", "from phicalc.calculator import PhiCalculator"),
        ("calculator", "from phicalc.model.potential import Potential"),
        ("calculator", "def f():\n    from phicalc.data import graph"),
        ("fields", "from . import errors"),
    ],
)
def test_the_check_sees_an_arrow_that_runs_back_up(module, line, monkeypatch):
    for name in ["electrostatics.phi", "nn.radial", "model.potential", "calculator", "data.graph"]:
        monkeypatch.setitem(MODULES, name, PACKAGE)
    assert forbidden(module, imports(module, line, is_package=False))


def test_only_the_model_file_scripts_saves_and_loads():
    serving = {"script", "trace", "save", "load", "freeze", "optimized_execution"}
    for module, path in MODULES.items():
        if module == "artifact":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in serving:
                assert ast.unparse(node.value) not in ("torch.jit", "jit"), f"{module}: {node.attr}"


def run_python(code: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


def test_importing_phicalc_is_cheap():
    run_python(
        "import sys, phicalc\n"
        "heavy = {'torch', 'ase', 'matplotlib', 'torch_geometric'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


def test_a_model_file_says_what_it_is_without_torch():
    """`phicalc info` answers at once."""
    model = PACKAGE.parent / "models" / "nacl-water.pt"
    run_python(
        "import sys\n"
        "from phicalc.metadata import read_metadata\n"
        f"assert read_metadata({str(model)!r}).symbols == ['H', 'O', 'Na', 'Cl']\n"
        "assert 'torch' not in sys.modules"
    )


def test_importing_everything_changes_nothing():
    ours = [f"phicalc.{module}" for module in MODULES if module]
    # What upstream packages change when they are imported is theirs, so they come first.
    run_python(
        "import importlib, logging, os, signal, warnings\n"
        "import numpy, torch, matplotlib\n"
        f"for name in {sorted(upstream_modules())!r}:\n"
        "    importlib.import_module(name)\n"
        "def state():\n"
        "    return {\n"
        "        'dtype': torch.get_default_dtype(), 'device': torch.get_default_device(),\n"
        "        'threads': torch.get_num_threads(), 'grad': torch.is_grad_enabled(),\n"
        "        'seed': torch.initial_seed(), 'errors': numpy.geterr(),\n"
        "        'deterministic': torch.are_deterministic_algorithms_enabled(),\n"
        "        'executor': torch._C._get_graph_executor_optimize(),\n"
        "        'print': numpy.get_printoptions(), 'warnings': list(warnings.filters),\n"
        "        'environment': dict(os.environ), 'interrupt': signal.getsignal(signal.SIGINT),\n"
        "        'logging': list(logging.getLogger().handlers),\n"
        "        'backend': matplotlib.get_backend(auto_select=False),\n"
        "    }\n"
        "before = state()\n"
        f"for name in {ours!r}:\n"
        "    importlib.import_module(name)\n"
        "after = state()\n"
        "changed = {key: after[key] for key in before if before[key] != after[key]}\n"
        "assert not changed, changed\n"
    )
