"""Two processes with gloo against one process with the joint batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from phicalc.errors import ConfigError
from phicalc.train.config import parse_config
from phicalc.train.dataset import load_training_data
from phicalc.train.distributed import join_processes
from phicalc.train.trainer import Trainer, train

BATCHES = [[0, 1, 2, 3], [4, 5, 6], [3]]  # even, uneven, and nothing left for the second process

SCRIPT = """
import sys
import torch
from rich.console import Console
from phicalc.train.config import SOAPConfig, load_config
from phicalc.train.dataset import load_training_data
from phicalc.train.distributed import join_processes
from phicalc.train.trainer import Trainer

torch.set_num_threads(1)
processes = join_processes("cpu")
found = {}
for path in sys.argv[3:]:
    config = load_config(path)
    own = config.seed + processes.rank  # the first process's weights must win
    config = config.model_copy(update={"seed": own})
    trainer = Trainer(config, load_training_data(config), processes, Console(quiet=True))
    for batch in eval(sys.argv[2]):
        loss = trainer.objective.gradients(trainer.data.train, batch)
        gradients = [p.grad for p in trainer.potential.parameters()]
        found[f"{config.model.dtype} {batch}"] = (loss, gradients)
    found[f"{config.model.dtype} valid"] = trainer.objective.evaluate(trainer.data.valid, 2)[0]
config = config.model_copy(update={"optimizer": SOAPConfig(basis_steps=2)})
trainer = Trainer(config, load_training_data(config), processes, Console(quiet=True))
for _ in range(3):
    trainer.step()
weights = torch.nn.utils.parameters_to_vector(trainer.potential.parameters()).detach()
found["SOAP"] = [weights, processes.sum_(weights.clone()) - weights]  # of this process, the other
if processes.is_first:
    torch.save(found, sys.argv[1])
processes.leave()
"""


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240)


def with_dtype(content, dtype):
    return content | {"model": content["model"] | {"dtype": dtype}}


@pytest.fixture(scope="module")
def two_processes(clusters, tmp_path_factory):
    """Configurations by dtype, and what two processes found with them."""
    folder = tmp_path_factory.mktemp("two")
    content = {
        "output": str(folder / "run"),
        "data": {"train": str(clusters / "train.xyz"), "valid": str(clusters / "valid.xyz")},
        "model": {"cutoff": 4.0, "backbone": {"kind": "painn", "features": 8, "layers": 2}},
        "epochs": 1,
    }
    contents = {dtype: with_dtype(content, dtype) for dtype in ("float64", "float32")}
    paths = [folder / f"{dtype}.yaml" for dtype in contents]
    for path, each in zip(paths, contents.values(), strict=True):
        path.write_text(yaml.safe_dump(each))
    script, out = folder / "script.py", folder / "found.pt"
    script.write_text(SCRIPT)
    done = torchrun(str(script), str(out), repr(BATCHES), *map(str, paths))
    assert done.returncode == 0, done.stderr
    return contents, torch.load(out, weights_only=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-6)])
def test_gradients_are_those_of_the_joint_batch(two_processes, quiet, dtype, tolerance):
    contents, found = two_processes
    config = parse_config(contents[dtype])
    trainer = Trainer(config, load_training_data(config), join_processes("cpu"), quiet)
    for batch in BATCHES:
        loss = trainer.objective.gradients(trainer.data.train, batch)
        joint_loss, joint_gradients = found[f"{dtype} {batch}"]
        assert joint_loss == pytest.approx(loss, rel=tolerance)
        ours = torch.cat([p.grad.reshape(-1) for p in trainer.potential.parameters()]).double()
        theirs = torch.cat([g.reshape(-1) for g in joint_gradients]).double()
        assert ours.norm() > 0
        assert (ours - theirs).norm() <= tolerance * ours.norm()
    loss, _ = trainer.objective.evaluate(trainer.data.valid, 2)
    assert found[f"{dtype} valid"] == pytest.approx(loss, rel=tolerance)


def test_bases_of_all_processes_are_one(two_processes):
    """Each process turns its own matrices; their weights are the same to the bit."""
    own, other = two_processes[1]["SOAP"]
    assert own.norm() > 0
    assert torch.equal(own, other)


def test_a_whole_run_of_two_processes_is_that_of_one(content, quiet, tmp_path):
    content = with_dtype(content, "float64")
    one = train(parse_config(content | {"output": str(tmp_path / "one")}), console=quiet)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content | {"output": str(tmp_path / "two")}))
    done = torchrun("-m", "phicalc.train", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished at step 9") == 1
    assert "2 process(es) on cpu" in done.stdout
    a, b = (
        torch.load(tmp_path / run / "last.pt", weights_only=True)["state_dict"]
        for run in ("one", "two")
    )
    for name, weight in a.items():
        torch.testing.assert_close(b[name], weight, rtol=1e-6, atol=1e-8)
    assert one.best_loss == pytest.approx(
        torch.load(tmp_path / "two" / "best.pt", weights_only=True)["extra"]["provenance"][
            "valid_loss"
        ],
        rel=1e-6,
    )
    assert Path(tmp_path / "two" / "metrics.csv").exists()


def test_a_device_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match="device: cuda:3 was asked for, but torch finds no CUDA"):
        join_processes("cuda:3")
