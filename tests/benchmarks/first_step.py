"""Seconds from the start of a training to the end of its first step, with and without kept graphs.

    python tests/benchmarks/first_step.py CONFIG.yaml [--rounds 3]

Runs the configuration in fresh processes that end after one step: first with no graphs kept
(an empty cache of its own), then with those the first has left. Starting Python is included.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

ONE_STEP = """
import os, sys
from phicalc.train.config import load_config
from phicalc.train.objective import Objective
from phicalc.train.trainer import train

step = Objective.gradients

def last(self, *arguments):
    step(self, *arguments)
    sys.stdout.flush()
    os._exit(0)

Objective.gradients = last
config = load_config(sys.argv[1])
train(config.model_copy(update={"output": config.output.__class__(sys.argv[2])}))
"""


def seconds(config: str, cache: str) -> float:
    """Of one process."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", ONE_STEP, config, f"{folder}/run"],
            env={**os.environ, "XDG_CACHE_HOME": cache},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    made, taken = [], []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            made.append(seconds(arguments.config, cache))
            taken.append(seconds(arguments.config, cache))
    print(f"graphs made {statistics.median(made):.1f} s, taken {statistics.median(taken):.1f} s")


if __name__ == "__main__":
    main()
