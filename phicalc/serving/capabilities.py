"""What may be asked of a model: combined once from its heads, kept in its file, read by all.

Readable without torch.
"""

from collections.abc import Sequence

from ase.data import chemical_symbols
from pydantic import BaseModel, ConfigDict, Field

from phicalc import fields
from phicalc.model.config import ModelConfig

WITH_FEEDBACK = (
    "with charge feedback the energy depends on the charges beyond the head's own energy, so that "
    "the polarisation is not that of the charges; use a model without it"
)
OLD_FILE = "this model file is older than electric fields; export its checkpoint again"


class Capabilities(BaseModel):
    """What may be asked of a model.

    Attributes
    ----------
    total_charge
        Whether it is told of total charges, so that it may be given ions.
    partial_pbc
        Whether it may be given slabs and wires.
    charges
        Whether it gives charges.
    potential
        Whether it has a potential φ.
    no_field
        Why an electric field, polarisation or Born charges mean nothing to it; None: they do.
    no_crystal_field
        The same for periodic structures.
    formal_charges
        e by chemical symbol, 0 where not given: a crystal has a polarisation only where they sum
        to its total charge. None: whatever they sum to.
    alone_above
        Atoms above which a structure is best evaluated by itself; None: never.
    basis_size
        Laplacian eigenvectors worth keeping from step to step.
    keeps_inverse
        Its solves are helped by the inverse of an earlier geometry, which it can give.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    total_charge: bool = False
    partial_pbc: bool = True
    charges: bool = False
    potential: bool = False
    no_field: str | None = None
    no_crystal_field: str | None = None
    formal_charges: dict[str, float] | None = None
    alone_above: int | None = None
    basis_size: int = Field(default=0, ge=0)
    keeps_inverse: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the properties of :mod:`phicalc.fields` that it gives, unasked or asked."""
        return tuple(
            row.name
            for row in fields.PROPERTIES
            if not (row.of_charges and not self.charges)
            and not (row.of_field and self.no_field is not None)
        )

    def field_obstacle(
        self, numbers: Sequence[int], periodic: bool, total_charge: float
    ) -> str | None:
        """Why this structure has no polarisation to speak of; None: it has.

        Parameters
        ----------
        numbers
            Atomic numbers.
        periodic
            In some direction.
        total_charge
            e.
        """
        if self.no_field is not None or not periodic:
            return self.no_field
        if self.no_crystal_field is not None or self.formal_charges is None:
            return self.no_crystal_field
        total = sum(self.formal_charges.get(chemical_symbols[number], 0.0) for number in numbers)
        if abs(total - total_charge) <= 1e-9:
            return None
        return (
            f"formal charges of {total:g} e in a cell of total charge {total_charge:g} e leave a "
            "rest that is shared by the atoms' surroundings, so that the sum of q·r depends on the "
            "choice of periodic images; use base: constant"
        )


def combined(config: ModelConfig) -> Capabilities:
    """What the heads of a model say of themselves, together."""
    heads = [head.capabilities for head in config.heads]
    one = heads[0] if config.feels_field else None
    kinds = ", ".join(head.kind for head in config.heads) or "none"
    no_field = None
    if one is None:
        no_field = (
            WITH_FEEDBACK
            if config.charge_feedback
            else (
                "it takes one head with a Coulomb energy (phi-coulomb, qeq or local), got heads: "
                f"{kinds}; charges without one are a latent field"
            )
        )
    limits = [head.alone_above for head in heads if head.alone_above is not None]
    return Capabilities(
        total_charge=config.total_charge,
        partial_pbc=not config.sums_coulomb,
        charges=any(head.charges for head in heads),
        potential=any(head.potential for head in heads),
        no_field=no_field,
        no_crystal_field=None if one is None else one.no_crystal_field,
        formal_charges=None if one is None else one.formal_charges,
        alone_above=min(limits, default=None),
        basis_size=max((head.basis_size for head in heads), default=0),
        keeps_inverse=any(head.keeps_inverse for head in heads),
    )
