"""Several processes as one: sums over processes, and the gradient of the joint batch.

Forces need a derivative inside the loss, which ``DistributedDataParallel``'s hooks do not see
through reliably; so each process takes the gradient of its share of the joint loss and the shares
are added up afterwards. Launch with ``torchrun --nproc-per-node N -m phicalc.train config.yaml``.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn

from phicalc.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """This process among its siblings; with ``size`` 1 every operation leaves its input alone."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that logs and saves."""
        return self.rank == 0

    def share(self, items: Sequence[int]) -> list[int]:
        """The part of a joint batch that this process evaluates; may be empty."""
        return list(items[self.rank :: self.size])

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up ``tensor`` over processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def maximum(self, number: int) -> int:
        """The largest number that any process gives."""
        if self.size == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    @torch.no_grad()
    def broadcast(self, module: nn.Module) -> None:
        """Give every process the weights and buffers of the first."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor, 0)

    def sum_gradients(self, module: nn.Module, loss: Tensor) -> float:
        """Replace every gradient by its sum over processes; return the summed loss.

        Gradients travel in one buffer with the loss, so all processes see the same number and
        decide alike. A parameter that took no part gets a zero gradient.
        """
        parameters = [p for p in module.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.size == 1:
            return float(loss.detach())
        # float64, so that the order of summation does not show in float32 gradients
        pieces = [loss.detach().double().reshape(1)]
        pieces += [p.grad.double().reshape(-1) for p in parameters if p.grad is not None]
        joint = self.sum_(torch.cat(pieces))
        position = 1
        for parameter in parameters:
            assert parameter.grad is not None
            piece = joint[position : position + parameter.numel()]
            parameter.grad.copy_(piece.view_as(parameter))
            position += parameter.numel()
        return float(joint[0])

    def leave(self, failed: bool = False) -> None:
        """Take down the process group, once all are there; one that failed does not wait."""
        if self.size > 1:
            if not failed:
                # gloo of torch 2.6 may hang where another process has left already
                torch.distributed.barrier()
            torch.distributed.destroy_process_group()


def join_processes(device: str) -> Processes:
    """Meet the sibling processes that torchrun started (none: a single process).

    Parameters
    ----------
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:k``. With several processes and ``auto`` or ``cuda``
        each takes the GPU of its local rank.

    Raises
    ------
    ConfigError
        If CUDA is asked for and there is none.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device: {device} was asked for, but torch finds no CUDA device")
    chosen = torch.device(device if device != "auto" else "cpu")
    if device in ("auto", "cuda") and torch.cuda.is_available():
        chosen = torch.device("cuda", local_rank if size > 1 else 0)
    if size == 1:
        return Processes(rank=0, size=1, device=chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Processes(torch.distributed.get_rank(), size, chosen)
