"""The package's rooms and the one way in which they may import each other."""

import ast
import graphlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import phicalc

PACKAGE = Path(phicalc.__file__).parent

GROUND = ["errors", "fields", "units", "envelope", "geometric"]
BELOW = ["checks", "machine", *GROUND]

# Room → what it may import of phicalc. A file belongs to the longest name that fits it. An entry
# lets in what lies below it too, "data" the whole of it; but not on the way down to the room:
# "workflows" lets into "workflows.md" the files that lie in no room below.
ROOMS = {
    **{name: [] for name in GROUND},
    "machine": GROUND,
    "checks": ["machine", *GROUND],
    "data": BELOW,
    "nn": GROUND,
    "electrostatics": GROUND,
    "electrostatics.coulomb": ["electrostatics", *GROUND],
    "electrostatics.solvers": ["electrostatics", "electrostatics.coulomb", *GROUND],
    "electrostatics.heads": [
        "electrostatics", "electrostatics.coulomb", "electrostatics.solvers", *GROUND,
    ],
    "model": ["nn", "electrostatics", *BELOW],
    "serving": ["model", "electrostatics", "data", *BELOW],
    "engines": ["serving", "electrostatics.solvers", "data", *BELOW],
    "train": ["serving", "model", "data", *BELOW],
    "train.ablation": ["train", "serving", "model", "data", *BELOW],
    "workflows": ["workflows.constraints", "data.boxes", *BELOW],
    "workflows.constraints": BELOW,
    "workflows.md": ["workflows", "workflows.constraints", *BELOW],
    "workflows.crystal": ["workflows", *BELOW],
    "workflows.spectra": ["workflows", "workflows.constraints", *BELOW],
    "bench": ["engines", "workflows", "serving", "model", "data", *BELOW],
    "cli": [
        "train", "bench", "engines", "workflows", "serving", "model", "data", *BELOW,
    ],
    # Names of earlier releases, each a door to one module.
    "calculator": ["engines.ase"],
    "prediction": ["serving.prediction"],
    "workflows.structures": ["data.boxes"],
    "workflows.md_settings": ["workflows.md"],
    "workflows.md_log": ["workflows.md"],
    "workflows.elasticity": ["workflows.crystal"],
    "workflows.equation_of_state": ["workflows.crystal"],
    "workflows.phonons": ["workflows.crystal"],
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
    """Every module of another package that phicalc imports somewhere, as far as it is installed."""
    found: set[str] = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    others = {name for name in found if not within(name, "phicalc")}
    return {name for name in others if find_spec(name.partition(".")[0]) is not None}


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

    def let_in(target: str, entry: str) -> bool:
        return room_of(target) == entry if within(room, entry) else within(target, entry)

    allowed = [room, *ROOMS[room]]
    return sorted(t for t in targets if t and not any(let_in(t, entry) for entry in allowed))


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
        ("nn.painn", "from phicalc.electrostatics.heads import phi"),
        ("electrostatics.heads.phi", "from ...nn import radial"),
        ("electrostatics.coulomb.mesh", "from phicalc.electrostatics.heads import phi"),
        ("data.graph", "import phicalc.model.potential"),
        ("workflows.md.dynamics", "from phicalc.engines.ase import PhiCalculator"),
        ("workflows.relax", "from phicalc.workflows.md import log"),
        ("serving.export", "from phicalc.train import trainer"),
        ("engines.ase", "from phicalc.model.potential import Potential"),
        ("engines.ase", "def f():\n    from phicalc.workflows.md import dynamics"),
        ("fields", "from . import errors"),
    ],
)
def test_the_check_sees_an_arrow_that_runs_back_up(module, line):
    assert forbidden(module, imports(module, line, is_package=False))


def test_one_module_touches_torchscript():
    """But for the question of code that is scripted whether it is."""
    for module, path in MODULES.items():
        if module == "serving.torchscript":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch.jit":
                assert node.attr == "is_scripting", f"{module}: torch.jit.{node.attr}"
            if isinstance(node, ast.ImportFrom):
                assert node.module != "torch.jit", module
                assert node.module != "torch" or all(n.name != "jit" for n in node.names), module


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
        "from phicalc.serving.metadata import read_metadata\n"
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
