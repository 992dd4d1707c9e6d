"""Pauling electronegativities, the start of every head that needs a sense of charge.

Values: CRC Handbook of Chemistry and Physics, "Electronegativity" (Pauling scale, as revised
by A. L. Allred, doi:10.1016/0022-1902(61)80142-5). Elements without a listed value get the
neutral 2.0; all of them are only a starting point that training moves.
"""

from typing import Sequence

UNLISTED: float = 2.0

# fmt: off
_PAULING: dict[int, float] = {
    1: 2.20, 3: 0.98, 4: 1.57, 5: 2.04, 6: 2.55, 7: 3.04, 8: 3.44, 9: 3.98, 11: 0.93, 12: 1.31,
    13: 1.61, 14: 1.90, 15: 2.19, 16: 2.58, 17: 3.16, 19: 0.82, 20: 1.00, 21: 1.36, 22: 1.54,
    23: 1.63, 24: 1.66, 25: 1.55, 26: 1.83, 27: 1.88, 28: 1.91, 29: 1.90, 30: 1.65, 31: 1.81,
    32: 2.01, 33: 2.18, 34: 2.55, 35: 2.96, 36: 3.00, 37: 0.82, 38: 0.95, 39: 1.22, 40: 1.33,
    41: 1.60, 42: 2.16, 43: 1.90, 44: 2.20, 45: 2.28, 46: 2.20, 47: 1.93, 48: 1.69, 49: 1.78,
    50: 1.96, 51: 2.05, 52: 2.10, 53: 2.66, 54: 2.60, 55: 0.79, 56: 0.89, 57: 1.10, 58: 1.12,
    59: 1.13, 60: 1.14, 62: 1.17, 64: 1.20, 66: 1.22, 67: 1.23, 68: 1.24, 69: 1.25, 71: 1.27,
    72: 1.30, 73: 1.50, 74: 2.36, 75: 1.90, 76: 2.20, 77: 2.20, 78: 2.28, 79: 2.54, 80: 2.00,
    81: 1.62, 82: 2.33, 83: 2.02, 84: 2.00, 85: 2.20, 88: 0.90, 89: 1.10, 90: 1.30, 91: 1.50,
    92: 1.38, 93: 1.36, 94: 1.28,
}
# fmt: on


def pauling_electronegativities(elements: Sequence[int]) -> list[float]:
    """Pauling electronegativity of each atomic number, read as V."""
    return [_PAULING.get(int(z), UNLISTED) for z in elements]


def starting_charges(elements: Sequence[int]) -> list[float]:
    """Charges | e that learned ones start from: 0.2 e per Pauling unit below the mean of all.

    Energies and forces are the same for charges of the opposite sign; this start tells them apart.
    """
    values = pauling_electronegativities(elements)
    mean = sum(values) / len(values)
    return [0.2 * (mean - value) for value in values]
