"""One table of properties, from which labels, losses, metrics, units and outputs follow."""

import ase.calculators.calculator
import numpy as np
import pytest
from ase import Atoms

from phicalc import fields
from phicalc.data.graph import to_graph
from phicalc.data.read import Labels, is_defined, labels_of
from phicalc.train.config import LossDeltas, LossWeights
from phicalc.train.metrics import UNITS, ErrorSums

PAIR = Atoms("Ar2", [[0, 0, 0], [0, 0, 3]])


def test_names_are_ases():
    ours = {row.name for row in fields.PROPERTIES} - {"polarizability"}
    assert ours <= set(ase.calculators.calculator.all_properties)


@pytest.mark.parametrize("name", fields.LABELS)
def test_a_label_is_a_row(name):
    """Read, put into a graph, weighed, measured: for each by the same row."""
    row = fields.PROPERTY[name]
    atoms = PAIR.copy()
    atoms.pbc = row.defined == "bulk"
    atoms.cell = [9.0, 9.0, 9.0]
    value = np.arange(row.size(1, 2), dtype=float).reshape(row.shape_of(2))
    (atoms.arrays if row.per == "atom" else atoms.info)[name] = value
    labels = labels_of(atoms)
    assert labels.present == {name} and is_defined(name, atoms)
    np.testing.assert_array_equal(getattr(labels, name), value)
    graph = to_graph(atoms, 4.0, labels)
    lead = () if row.per == "atom" else (1,)
    assert tuple(graph[name].shape) == lead + row.shape_of(2)
    assert np.isnan(getattr(Labels().filled([name], 2), name)).all()
    assert getattr(LossWeights(), name) == row.weight and getattr(LossDeltas(), name) == row.delta
    assert UNITS[name] == row.unit and name in ErrorSums.ROWS


def test_what_is_defined_for_which_periodicity():
    defined = {row.name: [row.is_defined(n) for n in range(4)] for row in fields.PROPERTIES}
    assert defined["forces"] == [True] * 4
    assert defined["stress"] == defined["dielectric_tensor"] == [False, False, False, True]
    assert defined["dipole"] == [True, False, False, False]
