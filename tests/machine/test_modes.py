"""Results do not depend on torch's modes in which a caller happens to be."""

from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from ase.build import bulk as build_bulk

from phicalc import PhiCalculator, load_model, predict
from phicalc.model.checkpoint import load_checkpoint, save_checkpoint
from phicalc.serving.export import describe, export
from phicalc.serving.model_file import model_bytes
from tests.heads import chosen
from tests.reference_models import small_potential


@contextmanager
def double_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "autocast": lambda: torch.autocast("cpu"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default dtype": double_by_default,
    "default device": lambda: torch.device("meta"),
    "deterministic": deterministic,
}
HEADS = chosen("phi", "qeq", "phi-coulomb")


def crystal(cells: int):
    """Shaken rock salt of 72 atoms, which Coulomb heads sum on a mesh, times a number."""
    atoms = build_bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (cells, 3, 3)
    atoms.rattle(0.05, seed=2)
    return atoms


def everything(content: bytes) -> list[np.ndarray]:
    """All that a model gives, by every door, from its file on."""
    model = load_model(content)
    frames = [crystal(4)] if model.metadata.heads == ["phi"] else [crystal(1)]  # iterative solves
    found = []
    for atoms in frames:
        atoms.calc = PhiCalculator(model, device="cpu")
        found += [atoms.get_forces(), atoms.get_stress(), atoms.get_charges()]
        found.append(np.array(list(atoms.calc.energy_terms.values())))
        if model.metadata.capabilities.no_field is None and "qeq" not in model.metadata.heads:
            found.append(atoms.calc.get_property("born_effective_charges", atoms))
        if "qeq" not in model.metadata.heads:
            found.append(atoms.calc.spectrum(modes=8).eigenvalues)
    found += [prediction.forces for prediction in predict(model, frames, device="cpu")]
    return found


@pytest.fixture(scope="module", params=HEADS)
def file(request) -> bytes:
    module = small_potential("float32", heads=HEADS[request.param])
    return model_bytes(module, describe(module.potential))


@pytest.fixture(scope="module")
def expected(file) -> list[np.ndarray]:
    return everything(file)


@pytest.mark.parametrize("mode", MODES)
def test_results_are_the_same_to_the_bit(file, expected, mode):
    with MODES[mode]():
        found = everything(file)
    assert len(found) == len(expected)
    for first, second in zip(found, expected, strict=True):
        assert first.dtype == second.dtype
        assert np.array_equal(first, second)


def test_export_is_the_same_in_all_modes_at_once(tmp_path):
    module = small_potential("float32", heads=HEADS["phi-coulomb"])
    save_checkpoint(tmp_path / "best.pt", module.potential)
    with ExitStack() as stack:
        for mode in MODES.values():
            stack.enter_context(mode())
        export(tmp_path / "best.pt", tmp_path / "model.pt")
        state = load_checkpoint(tmp_path / "best.pt").potential.state_dict()
    for name, value in module.potential.state_dict().items():
        assert torch.equal(state[name], value) and not state[name].is_inference(), name
    one = crystal(1)
    assert np.array_equal(
        PhiCalculator(tmp_path / "model.pt", device="cpu").get_forces(one),
        PhiCalculator(load_model(model_bytes(module, describe(module.potential)))).get_forces(one),
    )


def test_the_modes_are_as_before():
    """They end with the evaluation, also with one that fails."""
    module = small_potential("float32")
    calculator = PhiCalculator(load_model(model_bytes(module, describe(module.potential))))
    atoms = crystal(1)
    with torch.autocast("cpu"), torch.no_grad(), torch.device("meta"):
        calculator.get_forces(atoms)
        atoms.positions[0] = np.nan
        with pytest.raises(ValueError, match=r"finite|NaN"):
            calculator.get_forces(atoms)
        assert torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
        assert torch.empty(0).device.type == "meta"
    assert torch.empty(0).device.type == "cpu"
