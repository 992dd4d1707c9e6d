"""ASE calculator of a model file, or of a committee of them."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from numpy.typing import NDArray

from phicalc import fields
from phicalc.checks.conditions import name_spins
from phicalc.electrostatics.solvers.eigenbasis import spectrum
from phicalc.engines.parameters import ParametersCalculator, origin
from phicalc.errors import StructureError, UnsupportedError
from phicalc.machine.device import resolve_device
from phicalc.machine.modes import own_modes
from phicalc.machine.threads import OneThread
from phicalc.serving.committee import Consensus, consensus
from phicalc.serving.evaluation import Conditions
from phicalc.serving.evaluator import Evaluation, Evaluator
from phicalc.serving.model_file import ModelSource, load_model, load_models
from phicalc.serving.response import BORN, POLARIZABILITY, RESPONSE, refuse_undefined, response

Array = NDArray[np.float64]


class Spectrum(NamedTuple):
    """The potential φ = Σ_k α_k u_k in the eigenbasis of the graph Laplacian, L u_k = λ_k u_k.

    The sign of each α_k, and its shares within one degenerate λ_k, depend on the basis chosen.
    """

    eigenvalues: Array  # λ (k,) | e/V, ascending
    coefficients: Array  # α (k,) | V


class PhiCalculator(ParametersCalculator):
    """Energy, forces, stress, charges and dipole from a phicalc model.

    One evaluation fills all of them: energy and free_energy (eV), energies (N,) eV, forces
    (N, 3) eV/Å, stress (6,) eV/Å³ in ASE's order and sign (cells periodic in three directions
    only), charges (N,) e, and dipole (3,) e·Å (non-periodic only; about the centre of mass).
    Computed only when asked for: polarization (3,) e/Å², born_effective_charges (N, 3, 3) e and
    dielectric_tensor (3, 3); see :mod:`phicalc.serving.response` for who has them. Born
    charges are given by ``get_property`` alone and not kept in ``results``: ASE cannot write those
    of an atom's matrices as extended XYZ.

    ``results`` are those of the last structure: ``ase.io.write("x.extxyz", frames)`` of frames
    that share a calculator would write them with every frame. :func:`phicalc.predict` gives each
    frame its own. ``parameters`` name the model, its content and precision, and what the two
    arguments ``charge`` and ``field`` are now; ASE keeps them with each structure that it writes.

    The total charge is ``atoms.info["charge"]``, else ``charge``, else 0; a uniform electric
    field is ``atoms.info["external_field"]``, else ``field``, else 0. They are read anew at every
    request: changing them invalidates earlier results, and ``atoms.info`` is never written. A
    charge or field that stands only under another name is refused, a spin is named in a warning
    (:mod:`phicalc.checks.conditions`). In a field f the energy is E − f·PV, P·V the dipole about
    the origin or the polarisation times the volume, of the positions as given; stress is its
    derivative at this f.

    On Linux the first evaluation on a CPU asks the C library to keep freed memory for reuse, for
    the whole process (:mod:`phicalc.machine.allocator`); nothing else of the process is changed.
    Of torch's modes (autocast, ``no_grad``, default dtype and device) the results do not depend.

    A calculator holds one structure, so it serves one thread at a time: a second one is refused
    while the first computes, and so is reading what another thread's structure has replaced. Give
    each thread a calculator of its own; they may share one ``LoadedModel``.

    Parameters
    ----------
    model
        Model file; several form a committee, whose mean is the result.
    device
        ``"auto"`` (CUDA where there is one), ``"cpu"`` or ``"cuda[:n]"``.
    skin
        Å added to the cutoff of the neighbour list, which is rebuilt when it is used up.
    charge
        Total charge in e of structures that do not name their own.
    field
        Electric field in V/Å of structures that do not name their own.
    cache
        Keep the electrostatic potential and the Laplacian eigenbasis from step to step. They
        speed up the solve and do not change its result.
    threads
        CPU threads of an evaluation; the process's own setting is restored after each.
    default_dtype
        Precision of the network: "float64" for more than that of the file, which is the default.

    Raises
    ------
    ModelFileError
        A model file is missing, damaged or foreign.
    UnsupportedError
        No such device; less precision than the file has; when asked to calculate: unknown
        elements, or a total charge that the model was not made for, or an electric field that the
        heads cannot feel.
    StructureError
        When asked to calculate: no atoms, NaN positions, a flat cell, atoms on one spot.

    Examples
    --------
    >>> from phicalc import PhiCalculator
    >>> from phicalc.data.boxes import salt_water
    >>> atoms = salt_water(8, 1, seed=0)
    >>> atoms.calc = PhiCalculator("models/nacl-water.pt", device="cpu")
    >>> atoms.get_forces().shape
    (26, 3)
    """

    name = "phicalc"
    implemented_properties = [  # noqa: RUF012 - ASE's own convention
        "energy", "free_energy", "energies", "forces", "stress", "charges", "dipole",
        *RESPONSE,
    ]  # fmt: skip
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(
        self,
        model: ModelSource | Sequence[ModelSource],
        *,
        device: str = "auto",
        skin: float = 1.0,
        charge: float | None = None,
        field: Sequence[float] | None = None,
        cache: bool = True,
        threads: int | None = None,
        default_dtype: str | None = None,
    ) -> None:
        super().__init__()
        self.charge = charge
        self.field = field
        self._skin = skin
        self._cache = cache
        self._threads = threads
        self._device = device
        self._dtype = default_dtype
        self._consensus: Consensus | None = None
        self._conditions = Conditions(0.0, np.zeros(3))
        self._born: Array | None = None
        self._load(model)
        self.parameters.update(origin(model, self.models))

    def _load(self, model: ModelSource | Sequence[ModelSource]) -> None:
        """Models and everything else that is rebuilt rather than copied or pickled."""
        self._thread = OneThread()
        self.device = resolve_device(self._device)
        self.models = load_models(model, self.device, self._dtype)
        self.parameters["device"] = str(self.device)
        self._evaluator = Evaluator(self.models, self._skin, self._cache, self._threads)
        self._evaluations: list[Evaluation] = []
        self._seconds = 0.0

    # --- ASE's interface ------------------------------------------------------------------------

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """ASE's list of changes since the last calculation, total charge and field included."""
        changes: list[str] = super().check_state(atoms, tol)
        if not changes and self._own_conditions(atoms) != self._conditions:
            changes = ["info"]
        return changes

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """ASE's: a result by its name, computed where it is not known yet."""
        if name != BORN:
            return super().get_property(name, atoms, allow_calculation)
        with self._thread.working():
            if atoms is None:
                self._thread.check_reading()
            changes = [] if atoms is None else self.check_state(atoms)
            if changes:
                self.reset()
            if self._born is None:
                if not allow_calculation:
                    return None
                self.calculate(atoms, [name], changes)
            assert self._born is not None
            return self._born.copy()

    def reset(self) -> None:
        """Forget the last structure and its results."""
        with self._thread.working():
            super().reset()
            self._forget_results()

    def _forget_results(self) -> None:
        self.results = {}
        self._consensus = None
        self._evaluations = []
        self._born = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate the model once and fill ``results`` with all that the structure allows.

        What answers to a field (`RESPONSE`) comes only if named, and then from this evaluation or,
        where nothing changed, from the last one.

        Raises
        ------
        PropertyNotImplementedError
            A requested property is not defined for this structure or not given by this model.
        StructureError, UnsupportedError, ConvergenceError
            See the class; nothing is left in ``results`` then.
        """
        with self._thread.working():
            self._calculate(atoms, properties, system_changes)

    def _calculate(
        self, atoms: Atoms | None, properties: Sequence[str], system_changes: Sequence[str]
    ) -> None:
        start = time.perf_counter()
        asked = [name for name in properties if name in RESPONSE]
        changed = system_changes or (atoms is not None and self.check_state(atoms))
        if changed or not self._evaluations or len(asked) < len(properties):
            self._evaluate(atoms, properties, system_changes)
        if asked:
            assert self.atoms is not None
            found = response(self._evaluator, self._evaluations, asked, self.atoms)
            self._born = found.pop(BORN, self._born)
            found.pop(POLARIZABILITY, None)
            self.results.update(found)
        self._seconds += time.perf_counter() - start
        for name in properties:
            if name not in self.results and not (name == BORN and self._born is not None):
                raise PropertyNotImplementedError(f"this model does not give {name}")

    def _evaluate(
        self, atoms: Atoms | None, properties: Sequence[str], system_changes: Sequence[str]
    ) -> None:
        self._forget_results()
        self._thread.calculated(atoms)
        if atoms is not None:
            self.atoms = atoms.copy()
        if self.atoms is None:
            raise StructureError("expected a structure to calculate, got none; pass atoms")
        refuse_undefined(properties, self.atoms)
        if "numbers" in system_changes:
            # a new structure, or the old one after reset(): a restarted simulation must find the
            # same bits as one that went on
            self._evaluator.forget()
        stated = self.atoms if atoms is None else atoms  # a copy has lost what is no array or info
        conditions = self._own_conditions(stated)
        if "numbers" in system_changes:
            name_spins([stated], [conditions.charge])
        self._evaluations = self._evaluator(self.atoms, conditions)
        self._consensus = consensus([done.result for done in self._evaluations])
        self.results = self._consensus.mean.properties
        self._conditions = conditions

    # --- beyond ASE's properties ----------------------------------------------------------------

    @property
    def cutoff(self) -> float:
        """Distance in Å at which atoms are neighbours, the largest of a committee."""
        return float(max(model.metadata.cutoff for model in self.models))

    @property
    def potential(self) -> Array:
        """Electrostatic potential φ (N,) in V of the last structure.

        Raises
        ------
        UnsupportedError
            The model has no Φ, with or without Coulomb, or nothing was calculated yet.
        """
        potential = self._last_consensus().mean.potential
        if potential is None:
            raise UnsupportedError("no potential: expected a Φ head in each model, got one without")
        return potential.copy()

    @property
    def features(self) -> list[Array]:
        """Features (N, F) of the atoms after each message step, of the last structure.

        Invariant under rotation and reflection: what people choose, cluster and compare
        structures by. Of a committee, the first model's.

        Raises
        ------
        UnsupportedError
            A model file older than this, or nothing was calculated yet.
        """
        return list(self._evaluator.features(self._last_evaluation()))

    @property
    def polarizability(self) -> Array:
        """Electronic polarisability (3, 3) in e·Å²/V of the last structure, ions clamped.

        Of a crystal with the dielectric tensor ε∞, (ε∞ − 1) V / 4πk_e.

        Raises
        ------
        PropertyNotImplementedError
            The model, or the model and the structure, have none; says why.
        ConvergenceError
        """
        self._last_evaluation()
        assert self.atoms is not None
        names = [POLARIZABILITY]
        return response(self._evaluator, self._evaluations, names, self.atoms)[POLARIZABILITY]

    @property
    def energy_terms(self) -> dict[str, float]:
        """The energy of the last structure by term, in eV: reference, network, zbl, phi, …"""
        return dict(self._last_consensus().mean.energy_terms)

    @property
    def energy_spread(self) -> float:
        """Standard deviation in eV of the committee's energies; 0 for a single model."""
        return self._last_consensus().energy_spread

    @property
    def forces_spread(self) -> Array:
        """Root mean square over the committee of |F_i − mean F_i|, (N,) in eV/Å."""
        return self._last_consensus().forces_spread.copy()

    def _last_consensus(self) -> Consensus:
        self._thread.check_reading()
        if self._consensus is None:
            raise UnsupportedError("nothing was calculated yet; ask for an energy first")
        return self._consensus

    @own_modes()
    def spectrum(self, modes: int | None = None) -> Spectrum:
        """Eigenvalues λ_k of the graph Laplacian and coefficients α_k = u_kᵀφ of the potential.

        For analysis, not for every step. Of a committee, the first model's.

        Parameters
        ----------
        modes
            How many, lowest first; by default all, or 64 where the Laplacian is too large to be
            diagonalised whole.

        Raises
        ------
        UnsupportedError
            The model has no Φ head, or nothing was calculated yet.
        """
        last = self._last_evaluation()
        graph, output = last.graph, last.output
        if fields.LAPLACIAN_WEIGHTS not in output:
            raise UnsupportedError(
                "no spectrum: expected a Φ head in the first model, got one without"
            )
        eigenvalues, coefficients = spectrum(
            output[fields.LAPLACIAN_WEIGHTS].cpu(),
            graph[fields.EDGE_INDEX].cpu(),
            output[fields.POTENTIAL],
            modes,
        )
        return Spectrum(eigenvalues.numpy(), coefficients.numpy())

    def _last_evaluation(self) -> Evaluation:
        """The first model's."""
        self._last_consensus()
        if not self._evaluations:  # a copy carries results, but not what they were made from
            self.calculate(self.atoms)
        return self._evaluations[0]

    def cache_info(self) -> dict[str, float | str]:
        """What was reused so far: neighbour lists, and the first model's electrostatics."""
        return self._evaluator.cache_info()

    def timings(self) -> dict[str, float]:
        """Number of evaluations and mean wall seconds of each, by part.

        ``neighbours``, ``electrostatics`` (upkeep of its cache), ``model``, and ``other``:
        checks, copies and results, all that is neither.
        """
        count, parts = self._evaluator.timings()
        other = max(0.0, self._seconds / max(1, count) - sum(parts.values()))
        return {"evaluations": count, **parts, "other": other}

    # --- copying --------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Settings, results and the model files' content; what can be rebuilt is left out."""
        state = {name: value for name, value in self.__dict__.items() if name not in _REBUILT}
        state["_models"] = [(model.data, model.metadata.dtype) for model in self.models]
        state["parameters"] = dict(self.parameters)  # copy.copy's, too, are its own
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        models = state.pop("_models")
        self.__dict__.update(state)
        device = resolve_device(self._device)
        self._load([load_model(data, device, dtype) for data, dtype in models])


_REBUILT = {"device", "models", "_evaluator", "_evaluations", "_seconds", "_thread"}
