"""ASE's integrators in one voice: a target, a conserved quantity, and a state to save.

Two are our own, because ASE's cannot do it: its Langevin has no rigid bonds and counts no heat, its
Nosé–Hoover chain has no rigid bonds and always 3N degrees of freedom.
"""

from typing import Any, ClassVar, Protocol, cast

import numpy as np
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.md import MolecularDynamics as Dynamics
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT, NoseHooverChainThermostat
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

State = dict[str, NDArray[np.float64]]


class Integrator(Protocol):
    """What the workflow asks of an integrator, in ASE's units (eV, Å, ASE time)."""

    state_names: ClassVar[tuple[str, ...]]
    """Attributes (dotted names) that, with positions, momenta, cell and the random numbers'
    state, determine the next step."""

    def step(self) -> Any:
        """Advance the atoms by one time step."""

    def conserved_energy(self) -> float:
        """A quantity (eV) that stays constant but for the error of the time step."""

    def set_target(self, temperature: float, pressure: float) -> None:
        """Move the bath to this temperature (K) and pressure (eV/Å³)."""


class NVE(VelocityVerlet):
    """Constant energy: velocity Verlet, with RATTLE where bonds are rigid."""

    state_names: ClassVar[tuple[str, ...]] = ()

    def conserved_energy(self) -> float:
        return float(self.atoms.get_total_energy())

    def set_target(self, temperature: float, pressure: float) -> None:
        """Nothing: there is no bath."""


class Langevin(Dynamics):
    """Constant temperature: Langevin dynamics, BAOAB splitting.

    ASE's LangevinBAOAB leaves rigid bonds unconstrained and does not count the heat that the
    bath gives; this one does both (g-BAOAB with one RATTLE step per drift).

    Notes
    -----
    B. Leimkuhler and C. Matthews, J. Chem. Phys. 138, 174102 (2013), doi 10.1063/1.4802990;
    with constraints Proc. R. Soc. A 472, 20160138 (2016), doi 10.1098/rspa.2016.0138.
    """

    state_names: ClassVar[tuple[str, ...]] = ("heat",)

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        temperature: float,
        relaxation_time: float,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(atoms, timestep)
        self.rng = rng
        self.damping = float(np.exp(-timestep / relaxation_time))
        self.heat = 0.0
        self.set_target(temperature, 0.0)

    def set_target(self, temperature: float, pressure: float) -> None:
        self.noise = np.sqrt((1.0 - self.damping**2) * units.kB * temperature * self.masses)

    def conserved_energy(self) -> float:
        return float(self.atoms.get_total_energy()) - self.heat

    def step(self) -> None:
        atoms = self.atoms
        self._kick()
        self._drift()
        before = atoms.get_kinetic_energy()
        random = self.rng.standard_normal((len(atoms), 3))
        atoms.set_momenta(self.damping * atoms.get_momenta() + self.noise * random)
        self.heat += float(atoms.get_kinetic_energy() - before)
        self._drift()
        self._kick()

    def _kick(self) -> None:
        """B: half a step of the momenta."""
        atoms = self.atoms
        atoms.set_momenta(atoms.get_momenta() + 0.5 * self.dt * atoms.get_forces(md=True))

    def _drift(self) -> None:
        """A: half a step of the positions; constraints act on positions, then on momenta."""
        atoms = self.atoms
        before = atoms.get_positions()
        atoms.set_positions(before + 0.5 * self.dt * atoms.get_velocities())
        if atoms.constraints:
            moved = atoms.get_positions() - before
            atoms.set_momenta(moved * self.masses / (0.5 * self.dt))


class NoseHooverChain(VelocityVerlet):
    """Constant temperature: ASE's Nosé–Hoover chain around velocity Verlet.

    The same algorithm as ASE's NoseHooverChainNVT, which moves its own copy of the atoms and
    therefore knows neither rigid bonds nor degrees of freedom other than 3N.

    Notes
    -----
    G. J. Martyna, M. L. Klein and M. E. Tuckerman, J. Chem. Phys. 97, 2635 (1992),
    doi 10.1063/1.463940.
    """

    state_names: ClassVar[tuple[str, ...]] = ("thermostat._eta", "thermostat._p_eta")

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        temperature: float,
        relaxation_time: float,
        degrees_of_freedom: int,
    ) -> None:
        super().__init__(atoms, timestep)
        # the thermostat counts 3 degrees of freedom per atom: it is told of as many "atoms"
        self.thermostat = NoseHooverChainThermostat(
            num_atoms_global=cast(int, degrees_of_freedom / 3.0),
            masses=self.masses,
            temperature_K=temperature,
            tdamp=relaxation_time,
        )

    def set_target(self, temperature: float, pressure: float) -> None:
        self.thermostat._kT = units.kB * temperature

    def conserved_energy(self) -> float:
        return float(self.atoms.get_total_energy()) + self.thermostat.get_thermostat_energy()

    def step(self, forces: Any = None) -> None:
        self._scale_momenta()
        super().step(forces)
        self._scale_momenta()

    def _scale_momenta(self) -> None:
        momenta = self.thermostat.integrate_nhc(self.atoms.get_momenta(), 0.5 * self.dt)
        self.atoms.set_momenta(momenta, apply_constraint=False)


class StochasticRescaling(Bussi):
    """Constant temperature: ASE's Bussi–Donadio–Parrinello velocity rescaling.

    Notes
    -----
    G. Bussi, D. Donadio and M. Parrinello, J. Chem. Phys. 126, 014101 (2007), arXiv 0803.4060.
    """

    state_names: ClassVar[tuple[str, ...]] = ("transferred_energy",)

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        temperature: float,
        relaxation_time: float,
        degrees_of_freedom: int,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(atoms, timestep, temperature, relaxation_time, rng=rng)
        self.ndof = degrees_of_freedom
        self.set_target(temperature, 0.0)

    def set_target(self, temperature: float, pressure: float) -> None:
        self.temp = units.kB * temperature
        self.target_kinetic_energy = 0.5 * self.temp * self.ndof

    def conserved_energy(self) -> float:
        return float(self.atoms.get_total_energy() - self.transferred_energy)


class IsotropicNPT(IsotropicMTKNPT):
    """Constant temperature and pressure, volume free: ASE's Martyna–Tobias–Klein integrator.

    Notes
    -----
    G. J. Martyna, D. J. Tobias and M. L. Klein, J. Chem. Phys. 101, 4177 (1994),
    doi 10.1063/1.467468.
    """

    state_names: ClassVar[tuple[str, ...]] = (
        *("_thermostat._eta", "_thermostat._p_eta", "_barostat._xi", "_barostat._p_xi"),
        *("_cell0", "_volume0", "_eps", "_p_eps"),
    )

    def __init__(self, *args: Any, degrees_of_freedom: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _count_degrees_of_freedom(self, degrees_of_freedom)

    def set_target(self, temperature: float, pressure: float) -> None:
        _set_bath(self, temperature, pressure)

    def conserved_energy(self) -> float:
        return float(self.get_conserved_energy())


class FullCellNPT(MTKNPT):
    """Constant temperature and pressure, all of the cell free: ASE's MTK integrator.

    Notes
    -----
    As `IsotropicNPT`.
    """

    state_names: ClassVar[tuple[str, ...]] = (
        *("_thermostat._eta", "_thermostat._p_eta", "_barostat._xi", "_barostat._p_xi"),
        "_p_g",
    )

    def __init__(self, *args: Any, degrees_of_freedom: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _count_degrees_of_freedom(self, degrees_of_freedom)

    def set_target(self, temperature: float, pressure: float) -> None:
        _set_bath(self, temperature, pressure)

    def conserved_energy(self) -> float:
        return float(self.get_conserved_energy())


def _count_degrees_of_freedom(dynamics: Any, degrees_of_freedom: int) -> None:
    """Let an MTK integrator count these instead of three for each atom."""
    dynamics._num_atoms_global = degrees_of_freedom / 3.0
    dynamics._thermostat._num_atoms_global = degrees_of_freedom / 3.0


def _set_bath(dynamics: Any, temperature: float, pressure: float) -> None:
    """Target of an MTK integrator; the masses of its bath stay what they were."""
    for part in (dynamics, dynamics._thermostat, dynamics._barostat):
        part._kT = units.kB * temperature
    dynamics._pressure_au = pressure


def read_state(integrator: Integrator) -> State:
    """The integrator's internal variables by name."""
    return {name: np.array(_resolve(integrator, name)) for name in integrator.state_names}


def restore_state(integrator: Integrator, state: State) -> None:
    """Put back what `read_state` gave."""
    for name in integrator.state_names:
        owner, _, attribute = name.rpartition(".")
        value = state[name]
        target = _resolve(integrator, owner) if owner else integrator
        setattr(target, attribute, value.copy() if value.ndim else float(value))


def _resolve(owner: Any, name: str) -> Any:
    for part in name.split("."):
        owner = getattr(owner, part)
    return owner
