"""A task on several processes gives what it gives on one."""

import os
import subprocess
import sys
from functools import partial
from operator import truediv

import pytest

from phicalc.machine import cores
from phicalc.machine.cores import CHUNK, on_all_cores


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 2)


def place(_: int) -> int:
    return os.getpid()


def die_elsewhere(home: int, thing: int) -> int:
    """The thing, if that is asked at home."""
    if os.getpid() != home:
        os._exit(1)
    return thing


def test_all_in_order_by_other_processes():
    things = range(10 * CHUNK + 1)
    assert list(on_all_cores(partial(truediv, 1024), things[1:], 8)) == [
        1024 / i for i in things[1:]
    ]
    assert os.getpid() not in set(on_all_cores(place, things, 8))


def test_here_where_one_is_enough():
    assert set(on_all_cores(place, range(3), 1)) == {os.getpid()}


def test_what_the_task_raises():
    with pytest.raises(ZeroDivisionError):
        list(on_all_cores(partial(truediv, 1.0), range(100), 2))


def test_goes_on_here_when_processes_die():
    things = range(20 * CHUNK)
    assert list(on_all_cores(partial(die_elsewhere, os.getpid()), things, 2)) == list(things)


def test_a_script_without_a_guard_runs_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from math import sqrt\n"
        "from phicalc.machine import cores\n"
        "cores.available_cores = lambda: 2\n"
        "print(sum(cores.on_all_cores(sqrt, [4.0] * 100, 2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "200.0\n"
