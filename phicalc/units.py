"""Units and signs: eV, Å, e, K, fs at every surface; ASE's stress sign (tension positive).

Energy in eV, length in Å, charge in e (electron: −1), force in eV/Å, stress in eV/Å³,
potential in V (eV/e), dipole in e·Å, field in V/Å.
"""

import ase.units

COULOMB_CONSTANT: float = ase.units.Hartree * ase.units.Bohr
"""1/(4πε₀) = 14.39964… eV Å e⁻²."""

MEV: float = 1e-3
"""One meV in eV."""


def customary_unit(unit: str) -> tuple[str, float]:
    """The unit in which people quote errors, and its size: energies and forces in meV."""
    if unit in ("eV", "eV/atom", "eV/Å"):
        return f"m{unit}", MEV
    return unit, 1.0
