"""The real i-PI with our driver: through its sockets, its own client and inside its process."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.io import write
from numpy.testing import assert_allclose

from phicalc import PhiCalculator
from phicalc.data.boxes import water_box
from phicalc.engines import ipi_driver
from phicalc.engines.ipi import Driver
from phicalc.engines.ipi_client import serve
from phicalc.errors import StructureError
from phicalc.serving.model_file import load_model
from tests.engines import ipi_server as ipi

if importlib.util.find_spec("ipi") is None:
    pytest.skip("i-PI is not installed", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "nacl-water.pt"


@pytest.fixture(scope="module")
def model():
    return load_model(MODEL)


@pytest.fixture
def water():
    """Three molecules in a small box, O H H, off the lattice of water_box."""
    atoms = water_box(3, seed=2)
    atoms.rattle(0.02, seed=1)
    return atoms


@pytest.fixture
def address(tmp_path):
    """A name that no other test's server has."""
    name = f"phicalc-test-{os.getpid()}-{tmp_path.name[-12:]}"
    yield name
    Path(f"/tmp/ipi_{name}").unlink(missing_ok=True)


@pytest.fixture
def start():
    """Start a server; none outlives its test."""
    started = []

    def run(folder):
        started.append(ipi.start(folder))
        return started[-1]

    yield run
    for server in started:
        server.kill()
        server.wait()


def compute(drivers, address, wait=30.0):
    """A client in a thread for each driver; how many structures each has computed."""
    counts = {}

    def run(number, driver):
        counts[number] = serve(driver, unix=address, wait=wait)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(drivers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [counts[number] for number in range(len(drivers))]


def is_what_the_calculator_says(folder, water, calculator, beads=1, prefix="out"):
    """Energies and forces in i-PI's output are ours of the positions in its output."""
    found = ipi.properties(folder, prefix)
    energies = np.zeros(len(found["potential"]))
    for bead in range(beads):
        cells, positions = ipi.trajectory(folder, "positions", bead, prefix)
        _, forces = ipi.trajectory(folder, "forces", bead, prefix)
        assert len(positions) == len(forces) == len(energies)
        for step, (cell, rows) in enumerate(zip(cells, positions, strict=True)):
            atoms = water.copy()
            atoms.set_cell(cell)
            atoms.positions = rows
            energies[step] += calculator.get_property("energy", atoms) / beads
            # i-PI writes positions and forces with six digits
            assert_allclose(calculator.results["forces"], forces[step], rtol=1e-5, atol=1e-3)
    assert_allclose(energies, found["potential"], rtol=0, atol=2e-4)
    return found


@pytest.mark.parametrize(
    "options",
    ["", "<consolidate_messages> False </consolidate_messages>", "<batch_size> 4 </batch_size>"],
)
def test_path_integrals_over_two_clients(tmp_path, water, model, address, options, start):
    """With status messages between and without, and in batches: i-PI hears the same."""
    ipi.write_input(tmp_path, water, ipi.unix(address, options), beads=4)
    server = start(tmp_path)
    counts = compute([Driver(model, water), Driver(model, water)], address)
    ipi.ended(server, tmp_path)
    assert sum(counts) >= 4 * 5
    found = is_what_the_calculator_says(tmp_path, water, PhiCalculator(model), beads=4)
    assert np.ptp(found["conserved"]) < 0.05 * np.ptp(found["potential"])


def test_one_client_over_tcp(tmp_path, water, model, start):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    forcefield = (
        f"<ffsocket name='phi' mode='inet' pbc='false'> <address> localhost </address> "
        f"<port> {port} </port> </ffsocket>"
    )
    ipi.write_input(tmp_path, water, forcefield, steps=2)
    server = start(tmp_path)
    assert serve(Driver(model, water), host="localhost", port=port, wait=30.0) == 3
    ipi.ended(server, tmp_path)
    is_what_the_calculator_says(tmp_path, water, PhiCalculator(model))


def test_the_cell_follows_the_pressure(tmp_path, water, model, address, start):
    """i-PI's stress is −σ + kinetic part; its cell changes in shape and we follow it."""
    ipi.write_input(tmp_path, water, ipi.unix(address), ipi.stress(water.cell, [1, 2, 3]), steps=8)
    server = start(tmp_path)
    calculator = PhiCalculator(model)
    compute([Driver(model, water)], address)
    ipi.ended(server, tmp_path)
    found = is_what_the_calculator_says(tmp_path, water, calculator)
    cells, positions = ipi.trajectory(tmp_path, "positions")
    assert np.abs(cells[-1] / cells[0].trace() - np.eye(3) / 3).max() > 1e-5
    assert np.ptp(found["volume"]) > 1e-3 * found["volume"][0]
    # compressed water pushes outwards, and the cell, held by 1 GPa, grows
    atoms = water.copy()
    atoms.positions = positions[0]
    stress = calculator.get_property("stress", atoms)
    kinetic = 2 * found["kinetic_md"][0] / (3 * atoms.get_volume())
    expected = -stress[:3].mean() + kinetic
    assert found["stress_md"][0, :3].mean() == pytest.approx(expected / units.GPa, rel=1e-3)


# --- i-PI's own doors ---------------------------------------------------------------------------


@pytest.fixture
def structure_file(tmp_path, water):
    write(tmp_path / "water.xyz", water, format="extxyz")
    return tmp_path / "water.xyz"


def test_i_pis_own_client_loads_the_driver(tmp_path, water, model, address, structure_file, start):
    ipi.write_input(tmp_path, water, ipi.unix(address), steps=2)
    server = start(tmp_path)
    wait_for(Path(f"/tmp/ipi_{address}"))
    client = own_client(address, f"{MODEL},{structure_file},device=cpu,threads=1")
    output = client.communicate(timeout=60)[0]
    ipi.ended(server, tmp_path)
    assert client.returncode == 0, output
    is_what_the_calculator_says(tmp_path, water, PhiCalculator(model))


def test_i_pis_own_client_ends_by_one_line(tmp_path, structure_file):
    client = own_client("nowhere", f"{tmp_path / 'missing.pt'},{structure_file}")
    output = client.communicate(timeout=60)[0]
    assert client.returncode == 1
    assert output.startswith("error: ") and output.count("\n") == 1 and "missing.pt" in output


def own_client(address, options):
    command = shutil.which("i-pi-driver-py", path=ipi.SEARCHED)
    file = ipi_driver.__file__
    return subprocess.Popen(
        [command, "-u", "-a", address, "-m", "custom", "-P", file, "-o", options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("batch", ["", "<batch_size> 2 </batch_size>"])
def test_the_driver_inside_i_pi(tmp_path, water, model, structure_file, batch, start):
    forcefield = f"""
    <ffdirect name='phi' pbc='false'>
      <pes> custom </pes> <pes_path> {ipi_driver.__file__} </pes_path> {batch}
      <parameters>
        {{model: {MODEL}, structure: {structure_file}, device: cpu, extras: charges}}
      </parameters>
    </ffdirect>"""
    ipi.write_input(tmp_path, water, forcefield, ipi.NVT, beads=2, steps=2)
    ipi.ended(start(tmp_path), tmp_path)
    is_what_the_calculator_says(tmp_path, water, PhiCalculator(model), beads=2)


def test_a_field_through_born_charges_moves_atoms_as_the_models_own_field(
    tmp_path, water, model, address, start
):
    """i-PI's driven dynamics: its force is BEC @ E, ours the derivative of the energy in E."""
    field = [0.004, -0.002, 0.006]  # V/Å: the response to more is not linear
    ends = {}
    for name, motion, driver in (
        ("none", ipi.NVE, Driver(model, water)),
        ("ours", ipi.NVE, Driver(model, water, field=field)),
        ("i-PI's", ipi.driven(field), Driver(model, water, extras="dipole,BEC")),
    ):
        folder = tmp_path / name
        folder.mkdir()
        properties = "step, dipole" if name == "i-PI's" else "step"
        ipi.write_input(folder, water, ipi.unix(address), motion, steps=10, properties=properties)
        server = start(folder)
        compute([driver], address)
        ipi.ended(server, folder)
        ends[name] = ipi.last_positions(folder)
    moved = np.abs(ends["ours"] - ends["none"]).max()
    assert moved > 1e-4
    assert np.abs(ends["i-PI's"] - ends["ours"]).max() < 0.03 * moved
    dipoles = ipi.properties(tmp_path / "i-PI's")["dipole"]
    calculator = PhiCalculator(model)
    water.positions = ends["i-PI's"]
    expected = calculator.get_property("polarization", water) * water.get_volume() / units.Bohr
    assert_allclose(dipoles[-1], expected, atol=1e-5)


def test_replica_exchange(tmp_path, water, model, address, start):
    """Two temperatures over two clients; each system's energies are ours of its positions."""
    ipi.write_replicas(tmp_path, water, ipi.unix(address), [300, 600])
    server = start(tmp_path)
    compute([Driver(model, water), Driver(model, water)], address)
    ipi.ended(server, tmp_path)
    swaps = np.loadtxt(tmp_path / "out.remd_idx", ndmin=2)
    assert len(swaps) >= 1 and (np.sort(swaps[:, 1:], axis=1) == [0, 1]).all()
    for system in (0, 1):
        is_what_the_calculator_says(tmp_path, water, PhiCalculator(model), prefix=f"{system}_out")


# --- clients and servers that die ---------------------------------------------------------------


def wait_for(path, seconds=30.0):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)


def command(address, structure_file):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "phicalc.cli", "ipi", str(MODEL), str(structure_file)),
            *("--unix", address, "--threads", "1", "--device", "cpu"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SLOW = """
import sys, time
from pathlib import Path
from phicalc.engines.ipi import Driver
from phicalc.engines.ipi_client import serve
from phicalc.errors import StructureError

class Slow(Driver):
    calls = 0
    def __call__(self, cell, positions):
        Slow.calls += 1
        if Slow.calls == 6:
            Path("asleep").touch()
            time.sleep(600)
        return super().__call__(cell, positions)

serve(Slow(sys.argv[1], sys.argv[2], device="cpu"), unix=sys.argv[3])
"""


@pytest.mark.parametrize(
    ("end", "options"),
    [
        (signal.SIGKILL, ""),
        (signal.SIGKILL, "<batch_size> 4 </batch_size>"),
        (signal.SIGTERM, "<batch_size> 4 </batch_size>"),
    ],
)
def test_a_run_goes_on_when_a_client_is_killed_while_it_computes(
    tmp_path, water, model, address, structure_file, start, end, options
):
    """Before the other has come, so that all its work is left behind."""
    ipi.write_input(tmp_path, water, ipi.unix(address, options), beads=4, steps=10)
    server = start(tmp_path)
    victim = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(MODEL), str(structure_file), address],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    wait_for(tmp_path / "asleep")
    victim.send_signal(end)
    assert victim.wait(10) != 0
    (count,) = compute([Driver(model, water)], address)
    ipi.ended(server, tmp_path)
    assert 20 <= count < 4 * 11
    assert len(is_what_the_calculator_says(tmp_path, water, PhiCalculator(model), 4)["step"]) == 11


def test_a_run_goes_on_when_a_client_is_ended_at_any_time(
    tmp_path, water, model, address, structure_file, start
):
    ipi.write_input(tmp_path, water, ipi.unix(address), beads=4, steps=40)
    victim = command(address, structure_file)
    server = start(tmp_path)
    table = tmp_path / "out.properties"
    wait_for(table)
    while table.read_text().count("\n") < 12:  # a few steps by the victim alone
        time.sleep(0.02)
    victim.terminate()
    errors = victim.communicate(timeout=30)[1]
    assert victim.returncode == 128 + signal.SIGTERM
    assert errors.startswith("error: ended by SIGTERM after ") and errors.count("\n") == 1
    (count,) = compute([Driver(model, water)], address)
    ipi.ended(server, tmp_path)
    assert 40 < count < 4 * 41
    assert len(is_what_the_calculator_says(tmp_path, water, PhiCalculator(model), 4)["step"]) == 41


def test_a_run_goes_on_when_a_client_has_the_wrong_structure(
    tmp_path, water, model, address, start
):
    ipi.write_input(tmp_path, water, ipi.unix(address), steps=2)
    server = start(tmp_path)
    with pytest.raises(StructureError, match=r"expected the 3 atoms of the structure .*, got 9"):
        serve(Driver(model, water[:3]), unix=address, wait=30.0)
    assert compute([Driver(model, water)], address) == [3]
    ipi.ended(server, tmp_path)


def test_a_server_that_is_killed_is_missed_by_its_client(
    tmp_path, water, address, structure_file, start
):
    ipi.write_input(tmp_path, water, ipi.unix(address), steps=100000)
    server = start(tmp_path)
    client = command(address, structure_file)
    table = tmp_path / "out.properties"
    wait_for(table)
    while table.read_text().count("\n") < 10:
        time.sleep(0.02)
    server.kill()
    server.wait(10)
    errors = client.communicate(timeout=30)[1]
    assert client.returncode == 2
    assert errors.startswith("error: the i-PI server broke the connection after ")
    assert errors.count("\n") == 1


def test_the_command_computes_until_the_server_is_done(
    tmp_path, water, address, structure_file, start
):
    ipi.write_input(tmp_path, water, ipi.unix(address), steps=2)
    client = command(address, structure_file)
    ipi.ended(start(tmp_path), tmp_path)
    output, errors = client.communicate(timeout=30)
    assert (client.returncode, errors) == (0, "")
    assert output == f"3 structures computed by {MODEL}\n"


# --- what the page of documentation says --------------------------------------------------------

PAGE = (ROOT / "md_examples" / "engines.md").read_text(encoding="utf-8")
SECTION = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
SECTION = next(text for text in SECTION if text.startswith("i-PI\n"))


def block(mark):
    return re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture
def documented(tmp_path, water, address, monkeypatch):
    """A folder with the page's input, and the page's commands, under an address of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), ipi.SEARCHED]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    (tmp_path / "bin").mkdir()
    phicalc = tmp_path / "bin" / "phicalc"
    phicalc.write_text(f'#!/bin/sh\nexec {sys.executable} -m phicalc.cli "$@"\n')
    phicalc.chmod(0o755)
    (tmp_path / "model.pt").symlink_to(MODEL)
    write(tmp_path / "water.xyz", water, format="extxyz")
    (tmp_path / "input.xml").write_text(block("input.xml").replace("> water <", f"> {address} <"))

    def commands(mark):
        return (
            block(mark)
            .replace("--unix water", f"--unix {address}")
            .replace("-a water", f"-a {address}")
        )

    return commands


def test_the_pages_commands_run_its_input(tmp_path, documented, model, water):
    done = subprocess.run(
        ["sh", "-ec", documented("commands") + "wait\n"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = re.findall(r"(\d+) structures computed by model.pt", done.stdout)
    assert sum(map(int, counts)) == 4 * 5 and len(counts) == 2
    energies = np.loadtxt(tmp_path / "run.energies")[:, 1]
    water.calc = PhiCalculator(model)
    assert energies[0] == pytest.approx(water.get_potential_energy(), abs=3e-4)


def test_the_pages_way_through_i_pis_client(tmp_path, documented, address, start):
    server = start(tmp_path)
    wait_for(Path(f"/tmp/ipi_{address}"))
    subprocess.run(
        ["sh", "-ec", documented("i-PI's client")], timeout=120, check=True, capture_output=True
    )
    ipi.ended(server, tmp_path)


def test_the_pages_way_inside_i_pi(tmp_path, documented, start):
    file = ipi_driver.__file__
    inside = block("inside").replace("(what phicalc ipi --path prints)", file)
    text = (tmp_path / "input.xml").read_text()
    text = re.sub(r"<ffsocket .*</ffsocket>", lambda _: inside, text)
    (tmp_path / "input.xml").write_text(text)
    ipi.ended(start(tmp_path), tmp_path)
    assert len(np.loadtxt(tmp_path / "run.energies")) == 5
