"""A name in a structure file that is no element is named, and not taken for one."""

import pytest
from ase.io import read

from phicalc.data.read import read_structures
from phicalc.errors import DataError


@pytest.mark.parametrize(
    "name, message",
    [
        ("D", r"got 'D'; it is an isotope of hydrogen: write H, with the mass 2\.014"),
        ("T", r"got 'T'; .* mass 3\.016"),
        ("Na+", r"got 'Na\+'; write Na; charges belong to no symbol"),
        ("O2-", "got 'O2-'; write O;"),
        ("8", "got '8'; if it is an atomic number, write O"),
        ("Xx", "got 'Xx'; write the symbol of an element"),
        ("H1", "got 'H1'; if it is a label of H, write H"),
        ("OW", "got 'Ow'; if it is a label of O"),
    ],
)
def test_what_is_no_element(tmp_path, name, message):
    path = tmp_path / "a.xyz"
    path.write_text(f"2\n\nO 0 0 0\n{name} 0 0 1\n")
    with pytest.raises(DataError, match=message) as caught:
        read_structures(path)
    assert "a.xyz: expected chemical symbols" in str(caught.value)
    assert "complete" not in str(caught.value)


def test_other_formats_and_other_errors(tmp_path):
    path = tmp_path / "POSCAR"
    path.write_text("x\n1.0\n5 0 0\n0 5 0\n0 0 5\nD O\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n")
    with pytest.raises(DataError, match="got 'D'; it is an isotope"):
        read_structures(path)
    broken = tmp_path / "b.xyz"
    broken.write_text("3\n\nH 0 0\n")
    with pytest.raises(DataError, match="check that it is complete"):
        read_structures(broken)


def test_the_remedy_for_deuterium_is_one(tmp_path):
    path = tmp_path / "d.xyz"
    path.write_text("2\nProperties=species:S:1:pos:R:3:masses:R:1\nO 0 0 0 15.999\nH 0 0 1 2.014\n")
    assert read(path).get_masses().tolist() == [15.999, 2.014]
