import subprocess
import sys

import pytest

SCRIPT = """
import resource
from phicalc.allocator import keep_freed_memory

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is the libc of Linux")
def test_freed_pages_are_reused_and_without_glibc_nothing_is_done():
    without = faults("import platform; platform.libc_ver = lambda: ('musl', '')\n", expected=False)
    kept = faults("", expected=True)
    assert without > 100
    assert kept < 0.02 * without
