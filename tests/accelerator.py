"""A device of the tests: tensors that claim to be elsewhere, with their numbers on the CPU.

What a GPU would be asked to do can be counted without one. A tensor of this device says that it
is on ``meta`` and holds a tensor of the CPU; every operation on it is one that would be launched,
and every number that leaves it one that the CPU would have waited for. It mixes with tensors of
the CPU no better than a GPU's would, so that a forgotten device raises.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")

FREE = {"aten::" + name for name in (
    "view", "_unsafe_view", "_reshape_alias", "reshape", "t", "transpose", "permute", "expand",
    "slice", "select", "split", "split_with_sizes", "chunk", "unsqueeze", "squeeze", "diagonal",
    "detach", "alias", "as_strided", "unbind", "flatten", "unflatten", "view_as_real", "real",
    "imag", "narrow", "empty", "new_empty", "empty_strided", "lift_fresh", "movedim",
)}  # fmt: skip
"""Operations that only look at the same numbers in another way."""

WAITS = {"aten::" + name for name in (
    "nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "bincount",
    "repeat_interleave", "_linalg_check_errors", "equal", "is_nonzero",
)}  # fmt: skip
"""Operations that read on the CPU, inside, what CUDA computed: sizes and whether it went well."""


class DeviceTensor(Tensor):
    """A tensor on `DEVICE`, with its numbers in ``held``."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "DeviceTensor":
        laid = {}
        if held.layout == torch.strided:
            laid = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, device=DEVICE, **laid
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"DeviceTensor({self.held!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of `Accelerator`")


class Accelerator(TorchDispatchMode):
    """While it is entered, `DEVICE` can compute, and what it is asked for is counted.

    Attributes
    ----------
    launches
        How often each operation was launched.
    reads, uploads
        How often the CPU waited for numbers of the device, by the operation that made it wait,
        and how often it sent some.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        self.launches: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.uploads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function._schema.name
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        there = [x for x in given if isinstance(x, DeviceTensor)]
        to = kwargs.get("device")
        wanted = torch.device(to) if to is not None else None
        if not there and wanted != DEVICE and not any(x.device == DEVICE for x in given):
            return function(*args, **kwargs)
        self._count(name, kwargs, given, there, wanted)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        found = function(*tree_map(_held, args), **tree_map(_held, kwargs))
        if name == "aten::_local_scalar_dense" or (wanted is not None and wanted != DEVICE):
            return found
        if function._schema.is_mutable and given and args[0] is there[0]:
            return args[0]
        return tree_map(lambda x: DeviceTensor(x) if isinstance(x, Tensor) else x, found)

    def _count(self, name, kwargs, given, there, wanted) -> None:
        if name in ("aten::_to_copy", "aten::copy_") and len(there) < len(given):
            self.uploads += 1
            return
        if (
            there and wanted is not None and wanted != DEVICE
        ) or name == "aten::_local_scalar_dense":
            self.reads[name] += 1
            return
        assert name != "aten::lift_fresh", "torch.tensor(…, device=…) has no numbers on meta"
        elsewhere = [x for x in given if not isinstance(x, DeviceTensor) and x.dim() > 0]
        assert wanted or not elsewhere, f"{name} of a tensor of the device and one of the CPU"
        if name not in FREE:
            self.launches[name] += 1
        picks = name in ("aten::index", "aten::index_put_", "aten::index_put")
        checked = kwargs.get("check_errors") is True  # of linear algebra
        if name in WAITS or checked or (picks and any(x.dtype == torch.bool for x in there[1:])):
            self.reads[name] += 1


def moved(module: nn.Module) -> nn.Module:
    """A module's parameters and buffers on `DEVICE`, where it then computes."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            there = nn.Parameter(value.detach().to(DEVICE), requires_grad=False)
            setattr(part, name, there)
        for name, value in part.named_buffers(recurse=False):
            setattr(part, name, value.to(DEVICE))
    return module


def _held(value: Any) -> Any:
    return value.held if isinstance(value, DeviceTensor) else value
