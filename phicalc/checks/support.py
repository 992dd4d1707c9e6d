"""What a model was made for: total charges and periodic directions, and the refusal of others."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phicalc.checks.structure import check_pbc
from phicalc.errors import UnsupportedError

CHARGE_TOLERANCE = 1e-6
"""e, or e per atom: rounding of a total charge."""


@dataclass(frozen=True)
class ChargeRange:
    """Total charges of a model's training structures, lowest to highest.

    In e per atom (``per_atom``), for a model that tells each atom its part of the charge: of it
    any number of ions apart is no extrapolation. Else in e.
    """

    lowest: float
    highest: float
    per_atom: bool

    def holds(self, charge: float, atoms: int) -> bool:
        """Whether a structure of so many atoms and total charge (e) lies within."""
        value = charge / max(1, atoms) if self.per_atom else charge
        return self.lowest - CHARGE_TOLERANCE <= value <= self.highest + CHARGE_TOLERANCE

    def __str__(self) -> str:
        unit = "e per atom" if self.per_atom else "e"
        if self.lowest == self.highest:
            return f"{self.lowest:.4g}" if self.lowest == 0.0 else f"{self.lowest:.4g} {unit}"
        return f"{self.lowest:.4g} to {self.highest:.4g} {unit}"


def check_support(
    charge: float,
    pbc: NDArray[np.bool_],
    supports_total_charge: bool,
    supports_partial_pbc: bool,
    atoms: int = 0,
    charges: ChargeRange | None = None,
) -> None:
    """A total charge and periodic directions that a model was made for.

    Parameters
    ----------
    charge
        Total charge in e.
    pbc
        (3,) periodic directions.
    supports_total_charge, supports_partial_pbc
        Whether the model knows ions, and slabs and wires.
    atoms
        Number of atoms that the charge belongs to.
    charges
        Total charges that it was trained on; None: not known, so any.

    Raises
    ------
    UnsupportedError
        It was not.
    """
    if charge != 0.0 and not supports_total_charge:
        raise UnsupportedError(
            f"expected total charge 0 from a model trained without it, got {charge:g}; "
            'remove charge= or atoms.info["charge"], or use a model made for ions'
        )
    if supports_total_charge and charges is not None and not charges.holds(charge, atoms):
        raise UnsupportedError(
            f"expected a total charge as in the model's training data, {charges}, got "
            f'{charge:g} e on {atoms} atoms; correct charge= or atoms.info["charge"], or use a '
            "model trained on such charges"
        )
    if not supports_partial_pbc:
        check_pbc(pbc, "this model")
