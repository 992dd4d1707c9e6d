"""``python -m phicalc.train config.yaml``; also what torchrun starts, one per process."""

import argparse
import sys

from phicalc.errors import PhicalcError, status_of_signal
from phicalc.train.config import load_config
from phicalc.train.trainer import train


def main() -> int:
    """Train as the configuration on the command line says; returns the exit status.

    0 when the run ended, 130 or 143 when SIGINT or SIGTERM stopped it and it saved itself; with
    one line on standard error 2 when the input was wrong, 3 when the loss is not a number.
    """
    parser = argparse.ArgumentParser(prog="python -m phicalc.train", description=__doc__)
    parser.add_argument("config", help="YAML file")
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT/last.pt")
    parser.add_argument("--overwrite", action="store_true", help="start anew over an earlier run")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config)
        result = train(config, arguments.resume, overwrite=arguments.overwrite)
    except PhicalcError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    return 0 if result.stopped_by is None else status_of_signal(result.stopped_by)


if __name__ == "__main__":
    sys.exit(main())
