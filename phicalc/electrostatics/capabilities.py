"""What an electrostatics head can do, said once by its configuration; readable without torch."""

from dataclasses import dataclass
from typing import Final

DENSE_LIMIT: Final = 64
"""Structures up to this many atoms are solved densely: there the two ways cost the same.

Measured on water in MD, what the qeq head adds to a step of PaiNN (CPU ms, dense and iterative):
3.6 and 3.9 for 24 atoms, 4.9 and 5.3 for 48, 12.0 and 6.2 for 96, 42.7 and 8.2 for 192; as
clusters 1.5 and 1.4, 1.6 and 1.2, 1.9 and 1.7, 4.8 and 2.9. phi-coulomb and local cross over at the
same place. In a crystal dense is Ewald's sum to 1e-12, and iterative is the mesh to its accuracy.
"""

METALLIC: Final = (
    "charge equilibration lets charge flow any distance at no cost, so a periodic cell screens "
    "like a metal; use a model with the phi-coulomb head"
)
FROM_SURROUNDINGS: Final = (
    "its charges come from the atoms' surroundings, so that the sum of q·r of a periodic cell "
    "depends on the choice of periodic images; use phi-coulomb with base: formal or constant"
)


@dataclass(frozen=True)
class HeadCapabilities:
    """What may be asked of one head.

    Attributes
    ----------
    charges
        It gives charges.
    potential
        It has a potential φ, of which a model can have one.
    constrained
        Its charges sum to the total charge; those of Φ are neutral in every fragment.
    coulomb
        It sums Coulomb energies, which exist for molecules and bulk but not for slabs and wires,
        and through which it feels an electric field.
    alone_above
        Atoms above which a structure is best evaluated by itself; None: never. A head with a
        matrix of all pairs of atoms does without it for one large structure, but not for a batch,
        which takes time and memory of the square of the largest.
    basis_size
        Laplacian eigenvectors worth keeping from step to step.
    keeps_inverse
        Its solves are helped by the inverse of an earlier geometry, which it can give.
    no_crystal_field
        Why a periodic structure has no polarisation free of arbitrary choices; None: it has.
    formal_charges
        e by chemical symbol, 0 where not given: a crystal has a polarisation only where they sum
        to its total charge. None: whatever they sum to.
    """

    charges: bool = True
    potential: bool = False
    constrained: bool = False
    coulomb: bool = False
    alone_above: int | None = None
    basis_size: int = 0
    keeps_inverse: bool = False
    no_crystal_field: str | None = None
    formal_charges: dict[str, float] | None = None
