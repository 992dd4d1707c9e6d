"""All that determines the rest of a run, in one file that is never half-written."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixBondLengths
from numpy.typing import NDArray

from phicalc.errors import ConfigError, ModelFileError
from phicalc.machine.archive import anew, read_whole, sound_parts
from phicalc.machine.files import replacing
from phicalc.workflows.md.integrators import State

FORMAT_VERSION = 2
"""2: with results and constraints. Files of version 1 are read, and have none to compare."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at one step, before that step's frame and row are written.

    Attributes
    ----------
    step
        Number of time steps done.
    structure
        Arrays of the structure: numbers, positions (Å), momenta (ASE's unit), masses (u),
        cell (Å), pbc, and the lengths of rigid bonds (Å).
    integrator
        The integrator's internal variables.
    degrees_of_freedom
        Number that the thermostat counts.
    random
        State of numpy's random bit generator.
    outputs
        Lengths of the output files, by name.
    settings
        The run's settings.
    results
        What the calculator says about this structure, by ASE's names.
    constraints
        As `described` gives them; None: not known.
    """

    step: int
    structure: dict[str, NDArray[Any]]
    integrator: State
    degrees_of_freedom: int
    random: dict[str, Any]
    outputs: dict[str, dict[str, int]]
    settings: dict[str, Any]
    results: dict[str, NDArray[Any]] = field(default_factory=dict)
    constraints: list[Any] | None = None

    def save(self, path: Path) -> None:
        """Write the file in one step; an older one stays whole until then.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        header = {
            "format_version": FORMAT_VERSION,
            "step": self.step,
            "degrees_of_freedom": self.degrees_of_freedom,
            "random": self.random,
            "outputs": self.outputs,
            "settings": self.settings,
            "constraints": self.constraints,
        }
        arrays: dict[str, Any] = {f"structure {name}": a for name, a in self.structure.items()}
        arrays |= {f"integrator {name}": a for name, a in self.integrator.items()}
        arrays |= {f"results {name}": a for name, a in self.results.items()}
        with replacing(path) as new, new.open("wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file that `save` wrote.

        Raises
        ------
        ModelFileError
            Not such a file, or from a newer version.
        """
        kind = "a checkpoint of phicalc md"
        parts = sound_parts(read_whole(path, kind), str(path), kind)
        try:
            with np.load(anew(parts), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header = json.loads(str(arrays.pop("header")))
            version = header.pop("format_version")
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ModelFileError(f"expected {kind}, got {path}") from error
        if version > FORMAT_VERSION:
            raise ModelFileError(
                f"{path}: expected format version {FORMAT_VERSION} or older, got {version}; "
                "use a newer phicalc"
            )
        return cls(
            **header,
            structure=_part(arrays, "structure "),
            integrator=_part(arrays, "integrator "),
            results=_part(arrays, "results "),
        )


def read_structure(atoms: Atoms) -> dict[str, NDArray[Any]]:
    """Copies of the arrays that a checkpoint keeps of a structure."""
    structure = {
        "numbers": atoms.get_atomic_numbers(),
        "positions": atoms.get_positions(),
        "momenta": atoms.get_momenta(),
        "masses": atoms.get_masses(),
        "cell": np.array(atoms.cell),
        "pbc": np.array(atoms.pbc),
    }
    for index, constraint in enumerate(atoms.constraints):
        if isinstance(constraint, FixBondLengths):
            if constraint.bondlengths is None:
                constraint.bondlengths = constraint.initialize_bond_lengths(atoms)
            structure[f"bondlengths {index}"] = np.array(constraint.bondlengths)
    return structure


def restore_structure(atoms: Atoms, structure: dict[str, NDArray[Any]]) -> None:
    """Put back what `read_structure` gave, into the same system with the same constraints.

    Raises
    ------
    ConfigError
        Other atoms than those of the checkpoint.
    """
    for name, present in (
        ("elements", atoms.numbers),
        ("masses", atoms.get_masses()),
        ("pbc", atoms.pbc),
    ):
        saved = structure["numbers" if name == "elements" else name]
        if not np.array_equal(present, saved):
            raise ConfigError(f"restart: expected the checkpoint's structure, got other {name}")
    lengths = {name: a for name, a in structure.items() if name.startswith("bondlengths ")}
    rigid = {
        f"bondlengths {index}": constraint
        for index, constraint in enumerate(atoms.constraints)
        if isinstance(constraint, FixBondLengths)
    }
    if lengths.keys() != rigid.keys():
        raise ConfigError("restart: expected the checkpoint's constraints, got other rigid bonds")
    for name, constraint in rigid.items():
        constraint.bondlengths = lengths[name]
    atoms.set_cell(structure["cell"])
    atoms.set_positions(structure["positions"], apply_constraint=False)
    atoms.set_momenta(structure["momenta"], apply_constraint=False)


def _part(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
