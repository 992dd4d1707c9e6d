"""What a step lowers and a validation measures: the loss of a model on labelled graphs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from phicalc import fields
from phicalc.data.graph import collate, graph_dict
from phicalc.data.graph_file import chosen_of, tensors_of
from phicalc.errors import ConfigError, ConvergenceError
from phicalc.geometric import Data
from phicalc.train.config import LossConfig
from phicalc.train.distributed import Processes
from phicalc.train.labels import labelled_structures
from phicalc.train.losses import joint_loss, residuals, summed_losses
from phicalc.train.metrics import ErrorSums, Evaluation, batches


@contextmanager
def _naming(use: str, numbers: Sequence[int]) -> Iterator[None]:
    """Say with which structures a solve did not converge."""
    try:
        yield
    except ConvergenceError as error:
        shown = f"{use} structures {list(numbers)} (counted from 0)"
        raise ConvergenceError(f"{shown}: {error}") from None


class Objective:
    """The loss of a model, shared out over processes.

    Parameters
    ----------
    model
        Maps a graph to energies, forces … (:class:`phicalc.model.derivatives.Differentiated`).
    config
        Which properties count, and how much.
    processes
        Each evaluates its share of the structures.
    """

    def __init__(self, model: nn.Module, config: LossConfig, processes: Processes) -> None:
        self.model = model
        self.config = config
        self.processes = processes

    def gradients(self, graphs: Sequence[Data], batch: list[int]) -> float:
        """Put the gradient of the loss of a joint batch into the parameters.

        Parameters
        ----------
        graphs
            The training set.
        batch
            Indices of the structures of the batch, of all processes together.

        Returns
        -------
        float
            The loss of the joint batch, the same number in every process.

        Raises
        ------
        ConvergenceError
            A potential did not converge; names the structures.
        """
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        loss = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        own = self.processes.share(batch)
        if own:
            graph = graph_dict(collate([graphs[i] for i in own]).to(self.processes.device))
            species = tensors_of(chosen_of(graphs, batch), fields.SPECIES)
            atoms = sum(len(one) for one in species)
            with _naming("training", sorted(own)):
                sums, _, prediction = self._losses(graph)
                loss = joint_loss(sums, self.config, len(batch), atoms)
                if fields.AUXILIARY_LOSS in prediction:
                    asked = prediction[fields.AUXILIARY_LOSS].sum() / len(batch)
                    loss = loss + self.config.auxiliary * asked
                # Without the gradients in positions and cell that nobody asks for.
                loss.backward(inputs=[p for p in self.model.parameters() if p.requires_grad])
        return self.processes.sum_gradients(self.model, loss)

    def evaluate(self, graphs: Sequence[Data], batch_size: int) -> tuple[float, Evaluation]:
        """Loss and errors on a set of structures, the same in every process.

        Large structures share batches, unlike in ``phicalc eval``: charges are solved directly, as
        in training, which cannot fail to converge and end a run.

        Raises
        ------
        ConvergenceError
            A potential did not converge; names the structures.
        """
        device = self.processes.device
        numbers = self.processes.share(range(len(graphs)))
        own = chosen_of(graphs, numbers)
        errors = ErrorSums(device)
        totals: dict[str, Tensor] = {
            name: torch.zeros((), dtype=torch.float64, device=device)
            for name in self.config.properties
        }
        self.model.eval()
        done = 0
        for graph, count in batches(own, batch_size, device):
            with _naming("validation", numbers[done : done + count]):
                sums, differences, _ = self._losses(graph)
            done += count
            errors.add({name: r.detach() for name, r in differences.items()}, graph)
            for name, value in sums.items():
                totals[name] += value.detach()
        for tensor in (errors.table, errors.size, *totals.values()):
            self.processes.sum_(tensor)
        structures, atoms = (round(value) for value in errors.size.tolist())
        loss = float(joint_loss(totals, self.config, structures, atoms))
        labelled = labelled_structures(graphs, self.config.properties)
        counts = {str(name): count for name, count in labelled.items()}
        return loss, Evaluation(structures, atoms, *errors.errors(), labelled=counts)

    def _losses(
        self, graph: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Mapping[str, Tensor]]:
        """Summed losses, the residuals they come from, and the prediction."""
        prediction: Mapping[str, Tensor] = self.model(graph)
        for name in self.config.properties:
            if name not in prediction:
                raise ConfigError(f"loss.weights.{name}: this model does not predict {name}")
        differences = residuals(prediction, graph, self.config.properties)
        return summed_losses(differences, self.config), differences, prediction
