"""Each complaint, by the words the user reads."""

import numpy as np
import pytest

from phicalc.checks import structure as checks
from phicalc.checks.support import check_support
from phicalc.errors import PhicalcError, StructureError, UnsupportedError

CUBE = 10.0 * np.eye(3)
PERIODIC, SLAB, MOLECULE = (np.array(p) for p in ([True] * 3, [True, True, False], [False] * 3))


def test_a_sound_structure_passes() -> None:
    for pbc in (PERIODIC, SLAB, MOLECULE):
        checks.check_structure([8, 1, 1], np.eye(3), CUBE, pbc, elements=[1, 8])
    checks.check_structure([8], np.zeros((1, 3)), np.zeros((3, 3)), MOLECULE)
    checks.check_structure([8], np.full((1, 3), 1e6), CUBE, PERIODIC)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e11])
def test_positions_that_are_not_finite(bad: float) -> None:
    positions = np.zeros((9, 3))
    positions[4, 2] = bad
    with pytest.raises(StructureError, match=r"expected finite positions, got .* for atom 4; "):
        checks.check_positions(positions)
    positions[[0, 2, 3, 5, 6, 8], 0] = bad
    with pytest.raises(StructureError, match=r"for atoms 0, 2, 3, 4, 5 and 2 more; .* time step"):
        checks.check_positions(positions)


def test_no_atoms() -> None:
    with pytest.raises(StructureError, match="expected at least one atom, got an empty structure"):
        checks.check_positions(np.zeros((0, 3)))


def test_shapes() -> None:
    with pytest.raises(StructureError, match=r"positions of shape \(N, 3\), got \(3,\)"):
        checks.check_positions(np.zeros(3))
    with pytest.raises(StructureError, match=r"a cell of shape \(3, 3\), got \(3,\)"):
        checks.check_cell(np.ones(3), PERIODIC)
    with pytest.raises(StructureError, match=r"one atomic number per atom, \(2,\), got \(3,\)"):
        checks.check_structure([1, 1, 1], np.zeros((2, 3)), CUBE, MOLECULE)


@pytest.mark.parametrize(
    "cell, pbc",
    [
        (np.zeros((3, 3)), PERIODIC),
        (np.diag([3.0, 3.0, 0.0]), PERIODIC),
        (np.array([[3.0, 0, 0], [0, 3, 0], [3, 3, 0]]), PERIODIC),
        (np.array([[3.0, 0, 0], [6, 0, 0], [0, 0, 3]]), SLAB),
        (np.diag([0.01, 0.01, 0.01]), PERIODIC),
    ],
)
def test_periodic_cell_without_volume(cell: np.ndarray, pbc: np.ndarray) -> None:
    with pytest.raises(StructureError, match=r"expected linearly .* zero volume .* set the cell"):
        checks.check_cell(cell, pbc)
    checks.check_cell(cell, MOLECULE)


def test_only_periodic_cell_vectors_need_a_length() -> None:
    checks.check_cell(np.diag([3.0, 3.0, 0.0]), SLAB)
    checks.check_cell(np.diag([-2.0, 3.0, 1.0]), PERIODIC)


def test_cell_that_is_not_finite() -> None:
    with pytest.raises(StructureError, match="expected finite cell vectors, got NaN"):
        checks.check_cell(np.full((3, 3), np.nan), MOLECULE)


def test_unknown_element() -> None:
    checks.check_species(np.array([1, 8, 1]), [1, 8, 11])
    with pytest.raises(UnsupportedError, match=r"knows \(H, O\), got Cl, U; use a model trained"):
        checks.check_species(np.array([1, 92, 17, 17]), [8, 1])


def test_unknown_element_without_a_symbol() -> None:
    with pytest.raises(UnsupportedError, match=r"got Z=-3, Z=500"):
        checks.check_species(np.array([500, -3]), [1])


def test_partial_pbc() -> None:
    checks.check_pbc(PERIODIC, "stress")
    checks.check_pbc(MOLECULE, "stress")
    with pytest.raises(
        UnsupportedError,
        match=r"no or three periodic directions for stress, got pbc \[True, True, False\]; add",
    ):
        checks.check_pbc(SLAB, "stress")


def test_what_a_model_was_made_for() -> None:
    check_support(0.0, PERIODIC, False, False)
    check_support(1.0, SLAB, True, True)
    with pytest.raises(UnsupportedError, match=r"expected total charge 0 .* got -1; remove"):
        check_support(-1.0, MOLECULE, False, True)
    with pytest.raises(UnsupportedError, match=r"three periodic directions for this model"):
        check_support(0.0, SLAB, True, False)


def test_two_atoms_on_one_spot() -> None:
    checks.check_separation(0.5, (0, 1))
    checks.check_separation(float("inf"), (-1, -1))
    with pytest.raises(StructureError, match="got 0 Å between atom 3 and atom 7; remove duplicate"):
        checks.check_separation(0.0, (3, 7))
    with pytest.raises(StructureError, match="atom 2 and its own periodic image"):
        checks.check_separation(1e-3, (2, 2))


def test_total_charge() -> None:
    assert checks.check_total_charge(-1) == -1.0
    assert checks.check_total_charge(np.array([2.0])) == 2.0
    for bad in ("two", None, np.nan, [1.0, 2.0]):
        with pytest.raises(StructureError, match="expected the total charge as one finite number"):
            checks.check_total_charge(bad)


def test_no_more_charge_than_all_electrons() -> None:
    water = np.array([8, 1, 1])
    assert checks.total_charge({}, None, water) == 0.0
    assert checks.total_charge({"charge": None}, -1.0, water) == -1.0
    assert checks.total_charge({"charge": 10}, -1.0, water) == 10.0
    for bad in (11.0, -1e4):
        with pytest.raises(StructureError, match="no more than all electrons, 10 e"):
            checks.total_charge({"charge": bad}, None, water)


def test_all_of_them_are_value_errors() -> None:
    assert issubclass(PhicalcError, ValueError)
    assert issubclass(StructureError, PhicalcError)
    assert issubclass(UnsupportedError, PhicalcError)
