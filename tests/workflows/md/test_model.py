"""A model of ours in molecular dynamics: its caches must not show in a restarted run."""

from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from phicalc import PhiCalculator
from phicalc.data.boxes import water_box
from phicalc.workflows.md.dynamics import MolecularDynamics
from phicalc.workflows.md.settings import MDSettings

MODEL = Path(__file__).parents[3] / "models" / "nacl-water.pt"


@pytest.mark.slow
def test_a_model_with_a_warm_cache_restarts_identically(tmp_path):
    """Large enough for the iterative solver, whose last bits depend on where it starts."""
    box = water_box(150, seed=1)

    def run(folder: Path, steps: int):
        box.calc = PhiCalculator(MODEL, threads=1)
        settings = MDSettings(
            steps=steps,
            ensemble="langevin",
            temperature=300.0,
            timestep=0.5,
            trajectory_every=2,
            log_every=2,
            checkpoint_every=4,
        )
        return MolecularDynamics(box, settings, folder).run(restart=True)

    whole = run(tmp_path / "whole", 10)
    assert whole.log["solver_iterations"][-1] > 0
    run(tmp_path / "parts", 6)
    run(tmp_path / "parts", 10)
    frames, others = (read(tmp_path / name / "md.traj", ":") for name in ("whole", "parts"))
    assert len(frames) == len(others) == 6
    for one, two in zip(frames, others, strict=True):
        np.testing.assert_array_equal(one.positions, two.positions)
        np.testing.assert_array_equal(one.get_forces(), two.get_forces())
        np.testing.assert_array_equal(one.get_charges(), two.get_charges())
