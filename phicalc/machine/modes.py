"""torch as it is where nobody has changed it: results do not depend on the caller's modes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_modes() -> Iterator[None]:
    """Gradients on, autocast and inference mode off, new tensors on the CPU, for a while.

    A caller may be inside ``torch.autocast`` (forces would be off by 0.01 eV/Å), ``torch.no_grad``
    or ``torch.inference_mode`` (there would be none), or have another default device. All of these
    are the calling thread's own. Also a decorator. Of the default dtype, which belongs to the
    whole process, nothing that we compute depends.
    """
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":  # get_default_device() of torch 2.6 misses some
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Another number of torch threads for a while."""
    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
