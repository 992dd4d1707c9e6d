"""Where a model computes."""

import torch

from phicalc.errors import UnsupportedError


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device of a name; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises
    ------
    UnsupportedError
        The name is unknown or the device is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UnsupportedError(
            f'expected device "auto", "cpu" or "cuda[:n]", got {device!r}'
        ) from error
    if resolved.type not in ("cpu", "cuda"):  # others have no float64, which energies need
        raise UnsupportedError(f'expected device "auto", "cpu" or "cuda[:n]", got {device!r}')
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise UnsupportedError(
            f"device {device!r}: torch sees {torch.cuda.device_count()} CUDA devices here; "
            'use device="cpu" or "auto"'
        )
    return resolved
