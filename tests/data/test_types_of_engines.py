"""Elements of the atom types of an MD engine, by symbol and by mass."""

import numpy as np
import pytest

from phicalc.data.symbols import numbers_of_types
from phicalc.errors import UnsupportedError

SALT = (1, 8, 11, 17)
MASSES = np.array([35.45, 1.008, 22.99, 15.999])


def test_by_mass_and_by_symbol():
    expected = [0, 17, 1, 11, 8]
    assert numbers_of_types(None, MASSES, SALT).tolist() == expected
    assert numbers_of_types(["Cl", "H", "Na", "O"], MASSES, SALT).tolist() == expected


def test_symbols_in_another_order_than_the_types():
    with pytest.raises(UnsupportedError, match=r"mass 35\.45 u for atom type 1, Cl, got H; name"):
        numbers_of_types(["H", "O", "Na", "Cl"], MASSES, SALT)
    with pytest.raises(UnsupportedError, match=r"mass 35\.45 u for atom type 1, Cl, got O"):
        numbers_of_types({1: "O"}, MASSES, SALT)


def test_isotopes_and_types_without_a_mass_are_as_they_are_called():
    heavy = np.array([2.014, 18.0, 0.0])
    assert numbers_of_types(["H", "O", "Na"], heavy, SALT).tolist() == [0, 1, 8, 11]
