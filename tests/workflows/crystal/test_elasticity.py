"""Elastic constants against analytic ones, published ones, and each other."""

import json

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from matscipy.calculators.manybody import Manybody
from matscipy.calculators.manybody.explicit_forms import StillingerWeber
from matscipy.calculators.manybody.explicit_forms.stillinger_weber import (
    Stillinger_Weber_PRB_31_5262_Si,
)
from matscipy.calculators.pair_potential import LennardJonesQuadratic, PairPotential
from matscipy.elasticity import full_3x3x3x3_to_Voigt_6x6, rotate_elastic_constants
from scipy.spatial.transform import Rotation

from phicalc.errors import ConfigError, ConvergenceError, OutputError, UnsupportedError
from phicalc.workflows.crystal.elasticity import ElasticConstants, ElasticSettings
from phicalc.workflows.crystal.equation_of_state import EquationOfState, EquationOfStateSettings
from phicalc.workflows.crystal.stiffness import symmetrised
from phicalc.workflows.relax import RelaxSettings
from phicalc.workflows.symmetry import point_group

IDENTITY = np.eye(3)[None]
TIGHT = RelaxSettings(cell="full", keep_symmetry=True, max_force=1e-5, max_stress=1e-4)


def silicon() -> Atoms:
    atoms = bulk("Si", "diamond", a=5.431, cubic=True)
    atoms.calc = Manybody(**StillingerWeber(Stillinger_Weber_PRB_31_5262_Si))
    return atoms


@pytest.fixture(scope="module")
def si():
    settings = ElasticSettings(strain=0.002, relax=TIGHT, max_force=1e-5)
    return ElasticConstants(silicon(), settings).run()


def test_silicon_of_stillinger_and_weber_as_published(si):
    """C₁₁ 151.4, C₁₂ 76.4, C₄₄ 56.4 GPa: doi 10.1103/PhysRevB.46.2250. Clamped: matscipy's."""
    birch = si.atoms.calc.get_property("birch_coefficients", si.atoms)
    clamped = full_3x3x3x3_to_Voigt_6x6(birch) / units.GPa
    np.testing.assert_allclose(si.clamped.matrix, clamped, atol=0.05)
    assert si.clamped.matrix[3, 3] > si.relaxed.matrix[3, 3] + 50.0
    matrix = si.relaxed.matrix
    assert matrix[0, 0] == pytest.approx(151.4, abs=0.1)
    assert matrix[0, 1] == pytest.approx(76.4, abs=0.1)
    assert matrix[3, 3] == pytest.approx(56.4, abs=0.1)
    for stiffness in (si.clamped, si.relaxed):
        assert stiffness.asymmetry < 0.05 and stiffness.symmetry_error < 0.05
        assert stiffness.stable
    assert si.stiffness is si.relaxed and si.space_group == "Fd-3m (227)"
    assert si.residual_stress < 1e-3


def test_lennard_jones_against_the_analytic_second_derivative():
    """A cell of no symmetry at all, every one of the 21 constants within 0.02 GPa."""
    calculator = PairPotential({(18, 18): LennardJonesQuadratic(0.0104, 3.4, 6.8)})
    atoms = bulk("Ar", cubic=True, a=5.25)
    strain = np.array([[0.01, 0.0, 0.0], [0.02, 0.0, 0.0], [0.01, 0.03, 0.0]])
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.calc = calculator
    settings = ElasticSettings(relax=None, strain=1e-3, relax_atoms=False)
    found = ElasticConstants(atoms, settings).run()
    birch = calculator.get_property("birch_coefficients", atoms)
    expected = full_3x3x3x3_to_Voigt_6x6(birch, check_symmetry=False) / units.GPa
    # off equilibrium the constants of stress and strain differ from their transpose
    np.testing.assert_allclose(found.clamped.matrix, 0.5 * (expected + expected.T), atol=0.02)
    assert found.relaxed is None and found.stiffness is found.clamped


def test_a_turned_crystal_has_turned_constants(si):
    turn = Rotation.from_euler("xyz", [20.0, 30.0, 40.0], degrees=True).as_matrix()
    atoms = si.atoms.copy()
    atoms.set_cell(atoms.cell.array @ turn.T, scale_atoms=True)
    atoms.calc = si.atoms.calc
    assert len(point_group(atoms)) == 48
    settings = ElasticSettings(strain=0.002, relax=None, relax_atoms=False)
    found = ElasticConstants(atoms, settings).run().clamped
    expected = rotate_elastic_constants(si.clamped.matrix, turn)
    np.testing.assert_allclose(found.matrix, expected, atol=0.05)
    assert found.symmetry_error < 0.05


def test_moduli_of_the_polycrystal():
    """Copper, 168.4 121.4 75.4 GPa: Voigt 54.64, Reuss 40.03 by the formulae for cubic crystals."""
    matrix = np.diag([168.4] * 3 + [75.4] * 3)
    matrix[:3, :3] += 121.4 * (1.0 - np.eye(3))
    copper = symmetrised(matrix, IDENTITY)
    assert copper.bulk_modulus == pytest.approx((411.2 / 3,) * 3)
    voigt, reuss = (47.0 + 3 * 75.4) / 5, 5 * 47.0 * 75.4 / (4 * 75.4 + 3 * 47.0)
    assert copper.shear_modulus == pytest.approx((voigt, reuss, 0.5 * (voigt + reuss)))
    assert copper.young_modulus == pytest.approx(127.3, abs=0.3)
    assert copper.poisson_ratio == pytest.approx(0.345, abs=0.002)
    assert copper.anisotropy == pytest.approx(5 * voigt / reuss - 5)
    isotropic = symmetrised(matrix - np.diag([0, 0, 0, 1, 1, 1]) * (75.4 - 23.5), IDENTITY)
    assert isotropic.anisotropy == pytest.approx(0.0, abs=1e-12)
    matrix[:3, :3] += 60.0 * (1.0 - np.eye(3))  # C₁₁ < C₁₂
    assert copper.stable and not symmetrised(matrix, IDENTITY).stable


@pytest.fixture(scope="module")
def hexagonal():
    """EMT's hexagonal copper: its cell has a shape, and its atoms are free to move."""
    atoms = bulk("Cu", "hcp", a=2.55, c=4.16)
    atoms.calc = EMT()
    settings = ElasticSettings(strain=0.002, relax=TIGHT, max_force=1e-5)
    return ElasticConstants(atoms, settings).run()


def test_bulk_moduli_agree_with_equations_of_state(hexagonal):
    """Scaling the cell strains it equally, Voigt; letting its shape go stresses it so, Reuss."""
    stiffness = hexagonal.relaxed
    matrix = stiffness.matrix
    assert matrix[5, 5] == pytest.approx(0.5 * (matrix[0, 0] - matrix[0, 1]), abs=1e-6)
    assert matrix[0, 0] == pytest.approx(matrix[1, 1], abs=1e-6)
    assert hexagonal.clamped.matrix[0, 1] < matrix[0, 1] - 1.0
    for free, expected in (("atoms", 0), ("shape", 1)):
        settings = EquationOfStateSettings(relax=None, span=0.03, free=free, max_force=1e-4)
        found = EquationOfState(hexagonal.atoms, settings).run()
        assert found.bulk_modulus == pytest.approx(stiffness.bulk_modulus[expected], rel=2e-3)
        assert found.volume == pytest.approx(hexagonal.atoms.get_volume(), rel=1e-4)
        assert found.lattice_constant is None


def copper(cubic=True) -> Atoms:
    atoms = bulk("Cu", cubic=cubic, a=3.7)
    atoms.calc = EMT()
    return atoms


@pytest.mark.parametrize("equation", ["birchmurnaghan", "vinet", "murnaghan"])
def test_the_minimum_is_where_the_stress_vanishes(equation):
    settings = EquationOfStateSettings(equation=equation, span=0.04)
    found = EquationOfState(copper(), settings).run()
    atoms = copper()
    atoms.set_cell([found.lattice_constant] * 3, scale_atoms=True)
    assert found.volume == pytest.approx(found.lattice_constant**3)
    pressures = []
    for ratio in (0.999, 1.0, 1.001):
        strained = atoms.copy()
        strained.calc = EMT()
        strained.set_cell(atoms.cell * ratio ** (1 / 3), scale_atoms=True)
        pressures.append(-strained.get_stress()[:3].mean() / units.GPa)
    assert pressures[1] == pytest.approx(0.0, abs=0.02)
    assert found.bulk_modulus == pytest.approx((pressures[0] - pressures[2]) / 0.002, rel=3e-3)
    assert found.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
    assert 4.0 < found.bulk_modulus_derivative < 7.0 and found.residual < 1e-5


def test_primitive_and_cubic_cells_have_one_lattice_constant():
    settings = EquationOfStateSettings(span=0.02)
    found = [EquationOfState(copper(cubic), settings).run() for cubic in (True, False)]
    assert found[0].lattice_constant == pytest.approx(found[1].lattice_constant, abs=1e-4)
    assert found[0].volume == pytest.approx(4 * found[1].volume, rel=1e-4)


def test_files(tmp_path):
    eos = EquationOfState(copper(), EquationOfStateSettings(), tmp_path).run()
    content = json.loads((tmp_path / "eos.json").read_text(encoding="utf-8"))
    assert content["bulk_modulus_GPa"] == eos.bulk_modulus and len(content["volumes_A3"]) == 9
    assert (tmp_path / "eos.png").read_bytes().startswith(b"\x89PNG")
    elastic = ElasticConstants(copper(), ElasticSettings(), tmp_path).run()
    content = json.loads((tmp_path / "elastic.json").read_text(encoding="utf-8"))
    matrix = np.array(content["relaxed"]["elastic_constants"])
    np.testing.assert_allclose(matrix, elastic.relaxed.matrix, atol=1e-6)
    assert content["relaxed"]["stable"] and content["space_group"] == "Fm-3m (225)"
    names = {path.name for path in tmp_path.iterdir()}
    relax = {f"{n}-relax{kind}" for n in ("eos", "elastic") for kind in (".traj", "-final.extxyz")}
    assert names == {"eos.json", "eos.png", "elastic.json"} | relax
    for simulation in (
        EquationOfState(copper(), EquationOfStateSettings(), tmp_path),
        ElasticConstants(copper(), ElasticSettings(), tmp_path),
    ):
        with pytest.raises(OutputError, match="exists already"):
            simulation.run()
        simulation.run(restart=True)


def test_what_has_no_lattice_properties(tmp_path):
    water = molecule("H2O")
    water.calc = EMT()
    with pytest.raises(UnsupportedError, match="eos: expected a crystal periodic in three"):
        EquationOfState(water, EquationOfStateSettings())
    with pytest.raises(UnsupportedError, match="elastic: expected a crystal periodic in three"):
        ElasticConstants(water, ElasticSettings())
    far = EquationOfState(copper(), EquationOfStateSettings(relax=None, span=0.02), tmp_path)
    with pytest.raises(ConvergenceError, match=r"expected the minimum between .* relax the cell"):
        far.run()
    assert list(tmp_path.iterdir()) == []
    for kind, changes, message in (
        (EquationOfStateSettings, {"points": 4}, "points: expected greater than or equal to 5"),
        (EquationOfStateSettings, {"span": -0.1}, "span: expected greater than 0"),
        (EquationOfStateSettings, {"free": "all"}, "free: expected 'nothing', 'atoms' or 'shape'"),
        (ElasticSettings, {"strain": 0.0}, "strain: expected greater than 0"),
        (ElasticSettings, {"strain": 0.5}, "strain: expected less than 0.1"),
    ):
        with pytest.raises(ConfigError, match=message):
            kind(**changes)
