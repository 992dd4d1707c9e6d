"""What phicalc uses of torch-geometric, imported without a notice that nobody here can act on.

It scripts functions when it is imported, of which torch 2.14 says that TorchScript is deprecated.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)
    from torch_geometric.data import Batch, Data
    from torch_geometric.utils import scatter

__all__ = ["Batch", "Data", "scatter"]
