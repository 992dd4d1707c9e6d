"""Names of the tensors that travel between data, model and calculator.

N atoms, E directed edges, B structures, k basis vectors. One name, one shape, one unit.
A directed edge e runs from a sender j to a receiver i; each neighbour pair (and each periodic
image of it) appears twice, once in either direction. Edges are sorted by receiver.
"""

from typing import Final

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
CHARGE_GUESS: Final = "charge_guess"  # (N,) float64 | e | optional: start of the equilibration

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
