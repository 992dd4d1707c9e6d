"""The one table of heads that tests choose from: a new head joins by one line."""

from typing import Any

HEADS: dict[str, list[dict[str, Any]]] = {
    "no head": [],
    "phi": [{"kind": "phi"}],
    "qeq": [{"kind": "qeq"}],
    "phi-coulomb": [{"kind": "phi-coulomb", "formal_charges": {"Na": 1, "Cl": -1}}],
    "phi-coulomb learned": [{"kind": "phi-coulomb", "base": "learned"}],
    "phi-coulomb constant": [{"kind": "phi-coulomb", "base": "constant"}],
    "phi-coulomb without": [{"kind": "phi-coulomb", "coulomb": False}],
    "local": [{"kind": "local"}],
    "phi + qeq": [{"kind": "phi"}, {"kind": "qeq"}],
    "random Laplacian": [{"kind": "phi", "weights": "random"}],
    "phi-spectral": [{"kind": "phi-spectral", "modes": 4}],
    "pooled": [{"kind": "pooled"}],
}

KINDS = tuple(dict.fromkeys(head["kind"] for heads in HEADS.values() for head in heads))
"""Every kind of head; tests/electrostatics/heads/test_head.py sees that none is missing."""


def chosen(*names: str) -> dict[str, list[dict[str, Any]]]:
    """Some rows of the table."""
    return {name: HEADS[name] for name in names}
