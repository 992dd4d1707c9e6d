"""Names of the tensors that travel between data, model and calculator, and what is known of each.

N atoms, E directed edges, B structures, k basis vectors. One name, one shape, one unit.
A directed edge e runs from a sender j to a receiver i; each neighbour pair (and each periodic
image of it) appears twice, once in either direction. Edges are sorted by receiver.
"""

from dataclasses import dataclass
from typing import Final, Literal

# --- inputs -------------------------------------------------------------------------------------
SPECIES: Final = "species"  # (N,) int64 | - | atomic numbers
POSITIONS: Final = "positions"  # (N, 3) float64 | Å | positions, unwrapped as given
CELL: Final = "cell"  # (B, 3, 3) float64 | Å | rows are cell vectors; zero where not periodic
PBC: Final = "pbc"  # (B, 3) bool | - | periodic directions
EDGE_INDEX: Final = "edge_index"  # (2, E) int64 | - | row 0 sender j, row 1 receiver i
EDGE_VECTORS: Final = "edge_vectors"  # (E, 3) float64 | Å | r_j + S·cell − r_i, S integer
BATCH: Final = "batch"  # (N,) int64 | - | structure of each atom, ascending
TOTAL_CHARGE: Final = "total_charge"  # (B,) float64 | e | total charge Q
FIELD: Final = "field"  # (B, 3) float64 | V/Å | optional: uniform electric field; absent: zero
BASIS: Final = "basis"  # (N, k) float64 | - | optional: cached Laplacian eigenbasis
POTENTIAL_GUESS: Final = "potential_guess"  # (N,) float64 | V | optional: start of the solve
INVERSE: Final = "inverse"  # (N, N) float32 | - | optional: (1 + KL)⁻¹ of an earlier geometry
CHARGE_GUESS: Final = "charge_guess"  # (N,) float64 | e | optional: start of the equilibration
# What a CPU asks for, there already when a device computes; optional, the same numbers:
CPU_CELL: Final = "cpu_cell"  # as CELL
CPU_PBC: Final = "cpu_pbc"  # as PBC
NEIGHBOUR_COUNTS: Final = "neighbour_counts"  # (N,) int64 | - | edges to each atom, ascending

# --- outputs (labels in training data bear the same names) ----------------------------------------
ENERGY: Final = "energy"  # (B,) float64 | eV | total energy
ENERGIES: Final = "energies"  # (N,) float64 | eV | per-atom energies, sum to energy
FORCES: Final = "forces"  # (N, 3) float64 | eV/Å | minus the gradient of energy
STRESS: Final = "stress"  # (B, 3, 3) float64 | eV/Å³ | dE/dε / V, ASE sign; 3-D periodic only
CHARGES: Final = "charges"  # (N,) float64 | e | atomic charges, sum to total_charge
DIPOLE: Final = "dipole"  # (B, 3) float64 | e·Å | non-periodic structures only
POTENTIAL: Final = "potential"  # (N,) float64 | V | φ of the Φ head
SOURCE: Final = "source"  # (N,) float64 | V | s, what the atoms' features put into φ
SCREENING: Final = "screening"  # (1,) float64 | e/V | μ of the Φ head
MOMENT: Final = "moment"  # (B, 3) float64 | e·Å | P·V by the flow on edges; Σ q r of molecules
BORN_CHARGES: Final = "born_charges"  # (N, 3, 3) float64 | e | [a, i, j]: ∂(P·V)_i/∂r_a,j
POLARISABILITY: Final = "polarisability"  # (3, 3) float64 | e·Å²/V | ∂(P·V)_i/∂field_j, ions fixed
LAPLACIAN_WEIGHTS: Final = "laplacian_weights"  # (E,) float64 | e/V | edge weights w of L
AUXILIARY_LOSS: Final = "auxiliary_loss"  # (B,) float64 | - | what a head adds to the training loss
SOLVER_ITERATIONS: Final = "solver_iterations"  # (1,) int64 | - | CG iterations; 0: direct solve
SOLVER_RESIDUAL: Final = "solver_residual"  # (1,) float64 | - | relative residual of the solve
EQUILIBRATED_CHARGES: Final = "equilibrated_charges"  # (N,) float64 | e | q of the qeq head
CHARGE_ITERATIONS: Final = "charge_iterations"  # (1,) int64 | - | as above, of the equilibration
CHARGE_RESIDUAL: Final = "charge_residual"  # (1,) float64 | - | as above, of the equilibration

# --- the table of properties ----------------------------------------------------------------------


@dataclass(frozen=True)
class Property:
    """What a model may give and data may bear, under ASE's name.

    Attributes
    ----------
    name
        ASE's.
    per
        What there is one of it for.
    shape
        Of one of them.
    unit
        Of the value; that of Huber's delta and of the error in the loss is ``loss_unit``.
    defined
        For which structures: periodic in all directions ("bulk"), in none ("molecule"), any.
    of_charges
        Only models with charges give it.
    of_field
        Only models that feel an electric field give it, and only when it is asked for.
    weight
        In the loss, where the training configuration does not say; None: it is no label.
    delta
        Where the Huber loss turns from quadratic to linear, in ``loss_unit``.
    """

    name: str
    per: Literal["structure", "atom"]
    shape: tuple[int, ...]
    unit: str
    defined: Literal["any", "bulk", "molecule"] = "any"
    of_charges: bool = False
    of_field: bool = False
    weight: float | None = None
    delta: float = 0.0

    @property
    def loss_unit(self) -> str:
        """Energies are compared per atom."""
        return "eV/atom" if self.name == ENERGY else self.unit

    def size(self, structures: int, atoms: int) -> int:
        """Number of scalar components of that many structures with so many atoms together."""
        components = 1
        for length in self.shape:
            components *= length
        return components * (atoms if self.per == "atom" else structures)

    def shape_of(self, atoms: int) -> tuple[int, ...]:
        """Shape of one structure's value."""
        return (atoms, *self.shape) if self.per == "atom" else self.shape

    def is_defined(self, periodic_directions: int) -> bool:
        """Whether it means anything for a structure with 0 to 3 periodic directions."""
        return (
            periodic_directions
            in {"any": (0, 1, 2, 3), "bulk": (3,), "molecule": (0,)}[self.defined]
        )

    @property
    def undefined_for(self) -> str:
        """Of which structures it isn't defined, in words."""
        return {"any": "", "bulk": "not periodic in three directions", "molecule": "periodic"}[
            self.defined
        ]


PROPERTIES: Final = (
    Property("energy", "structure", (), "eV", weight=100.0, delta=0.01),
    Property("energies", "atom", (), "eV"),
    Property("forces", "atom", (3,), "eV/Å", weight=1.0, delta=0.1),
    Property("stress", "structure", (3, 3), "eV/Å³", "bulk", weight=0.0, delta=0.002),
    Property("charges", "atom", (), "e", of_charges=True, weight=0.0, delta=0.1),
    Property("dipole", "structure", (3,), "e·Å", "molecule", True, weight=0.0, delta=0.5),
    Property("polarization", "structure", (3,), "e/Å²", "bulk", of_charges=True, of_field=True),
    Property("born_effective_charges", "atom", (3, 3), "e", of_charges=True, of_field=True),
    Property("dielectric_tensor", "structure", (3, 3), "", "bulk", of_charges=True, of_field=True),
    Property("polarizability", "structure", (3, 3), "e·Å²/V", of_charges=True, of_field=True),
)  # fmt: skip
"""Adding a property is a row here: labels, losses, metrics, units and outputs follow."""

PROPERTY: Final = {row.name: row for row in PROPERTIES}
LABELS: Final = tuple(row.name for row in PROPERTIES if row.weight is not None)
"""Names of what a model can be trained on."""
