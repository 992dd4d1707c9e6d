"""``python -m phicalc.train config.yaml``; also what torchrun starts, one per process."""

import argparse
import sys

from phicalc.errors import PhicalcError
from phicalc.train.config import load_config
from phicalc.train.trainer import train


def main() -> int:
    """Train as the configuration on the command line says.

    Exit status: 0 when the run ended, or was stopped by SIGINT or SIGTERM and saved itself;
    1 with one line on standard error when the input was wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m phicalc.train", description=__doc__)
    parser.add_argument("config", help="YAML file")
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT/last.pt")
    parser.add_argument("--overwrite", action="store_true", help="start anew over an earlier run")
    arguments = parser.parse_args()
    try:
        train(load_config(arguments.config), arguments.resume, overwrite=arguments.overwrite)
    except PhicalcError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
