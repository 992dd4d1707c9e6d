import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from phicalc.machine.allocator import (
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    NEVER_TRIM,
    keep_freed_memory,
)

SCRIPT = """
import resource
from phicalc.machine.allocator import keep_freed_memory

assert keep_freed_memory() is {expected}

def faults_of_ten_blocks():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        b"x" * (64 << 20)  # above the 32 MiB up to which glibc adapts by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_ten_blocks()
print(faults_of_ten_blocks())
"""


def faults(patch: str, expected: bool) -> int:
    """Page faults of a process that takes and frees ten large blocks, after a first ten."""
    script = patch + SCRIPT.format(expected=expected)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


LIBC, VERSION = platform.libc_ver()


@pytest.mark.skipif(
    LIBC != "glibc" or [int(part) for part in VERSION.split(".")] < [2, 35],
    reason="no glibc, or one that returns blocks above 32 MiB whatever it is asked",
)
def test_freed_pages_are_reused_and_without_glibc_nothing_is_done():
    without = faults("import platform; platform.libc_ver = lambda: ('musl', '')\n", expected=False)
    kept = faults("", expected=True)
    assert without > 100
    assert kept < 0.02 * without


def test_an_older_glibc_gets_the_threshold_that_it_allows(monkeypatch):
    settings = {}

    def mallopt(name, value):
        if name == M_MMAP_THRESHOLD and value > 32 << 20:
            return 0
        settings[name] = value
        return 1

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory()
    assert settings == {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: NEVER_TRIM}
