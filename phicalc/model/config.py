"""What a model is made of, as a validated configuration."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from phicalc.checks.settings import Settings
from phicalc.electrostatics.capabilities import (
    DENSE_LIMIT,
    FROM_SURROUNDINGS,
    METALLIC,
    HeadCapabilities,
)


class PaiNNConfig(Settings):
    """Polarisable atom interaction network (arXiv 2102.03150)."""

    kind: Literal["painn"] = "painn"
    features: int = Field(default=64, ge=1, description="width F of scalar and vector channels")
    layers: int = Field(default=3, ge=1, description="message-passing steps T")
    radial: int = Field(default=20, ge=1, description="number of radial Bessel functions")


class SchNetConfig(Settings):
    """Continuous-filter convolutional network (arXiv 1706.08566)."""

    kind: Literal["schnet"] = "schnet"
    features: int = Field(default=64, ge=1, description="width F of the atom features")
    filters: int = Field(default=64, ge=1, description="width of the continuous filters")
    layers: int = Field(default=3, ge=1, description="message-passing steps T")
    radial: int = Field(default=50, ge=2, description="number of Gaussian radial functions")
    envelope: Literal["polynomial", "cosine"] = Field(
        default="polynomial", description="cutoff function; 'cosine' is the paper's and only C1"
    )


class DensityConfig(Settings):
    """Many-body message passing on densities of neighbours (10.1103/PhysRevB.99.014104)."""

    kind: Literal["density"] = "density"
    features: int = Field(default=64, ge=1, description="width F of scalar and vector channels")
    layers: int = Field(default=2, ge=1, description="message-passing steps T")
    radial: int = Field(default=8, ge=1, description="number of radial Bessel functions")


class PhiConfig(Settings):
    """Graph-Poisson head (arXiv 2505.14606), in its variational form."""

    kind: Literal["phi"] = "phi"
    sigma: float = Field(default=2.0, gt=0, description="decay length of the edge weights in Å")
    mu: float = Field(default=0.1, gt=0, description="starting value of the learned screening μ")
    basis_size: int = Field(
        default=32, ge=1, description="Laplacian eigenvectors kept in the cache"
    )
    weights: Literal["distance", "random"] = Field(
        default="distance",
        description="edge weights of the Laplacian; 'random' is a baseline that knows no bonds",
    )
    seed: int = Field(default=0, ge=0, description="of random edge weights")

    @property
    def capabilities(self) -> HeadCapabilities:
        """What may be asked of this head."""
        return HeadCapabilities(potential=True, basis_size=self.basis_size)


Accuracy = Annotated[
    float,
    Field(
        ge=1e-12,
        le=1e-4,
        description="ε, relative error of Coulomb energies on the mesh of large periodic cells",
    ),
]


class QEqConfig(Settings):
    """Charge equilibration head (CELLI, arXiv 2501.19179), in its variational form."""

    kind: Literal["qeq"] = "qeq"
    hardness: float = Field(default=10.0, gt=0, description="starting value of J in eV/e²")
    accuracy: Accuracy = 1e-7

    @property
    def capabilities(self) -> HeadCapabilities:
        """What may be asked of this head."""
        return HeadCapabilities(
            constrained=True,
            coulomb=True,
            alone_above=DENSE_LIMIT,
            no_crystal_field=METALLIC,
        )


class PhiCoulombConfig(Settings):
    """Φ with Coulomb: charge flows along the edges in the field of all charges."""

    kind: Literal["phi-coulomb"] = "phi-coulomb"
    sigma: float = Field(default=2.0, gt=0, description="decay length of the edge weights in Å")
    hardness: float = Field(
        default=10.0, gt=0, description="starting value of the site hardness in eV/e²"
    )
    base: Literal["formal", "constant", "learned"] = Field(
        default="formal",
        description="charges before any flow: formal ones, a learned constant per element besides, "
        "or learned from the features besides",
    )
    formal_charges: dict[str, float] = Field(
        default_factory=dict, description="charge in e by element symbol; 0 where not given"
    )
    coulomb: bool = Field(default=True, description="False leaves the Coulomb energy out, as in Φ")
    accuracy: Accuracy = 1e-7

    @property
    def capabilities(self) -> HeadCapabilities:
        """What may be asked of this head."""
        return HeadCapabilities(
            potential=True,
            constrained=True,
            coulomb=self.coulomb,
            keeps_inverse=self.coulomb,
            alone_above=DENSE_LIMIT,
            no_crystal_field=FROM_SURROUNDINGS if self.base == "learned" else None,
            formal_charges=self.formal_charges if self.base == "formal" else None,
        )


class LocalChargesConfig(Settings):
    """Charges straight from the features plus their Coulomb energy."""

    kind: Literal["local"] = "local"
    accuracy: Accuracy = 1e-7

    @property
    def capabilities(self) -> HeadCapabilities:
        """What may be asked of this head."""
        return HeadCapabilities(
            constrained=True,
            coulomb=True,
            alone_above=DENSE_LIMIT,
            no_crystal_field=FROM_SURROUNDINGS,
        )


class PhiSpectralConfig(Settings):
    """Baseline: the Φ-Module as published (arXiv 2505.14606), on each structure's own modes.

    Not extensive: k modes serve a structure of any size.
    """

    kind: Literal["phi-spectral"] = "phi-spectral"
    sigma: float = Field(default=2.0, gt=0, description="decay length of the edge weights in Å")
    modes: int = Field(default=16, ge=1, description="lowest modes of the Laplacian, k")
    width: float = Field(
        default=0.1, gt=0, description="range of eigenvalues in e/V over which modes fade out"
    )

    @property
    def capabilities(self) -> HeadCapabilities:
        """What may be asked of this head."""
        return HeadCapabilities(potential=True)


class PooledConfig(Settings):
    """Baseline: a scalar energy from the mean features of a structure.

    No physics and no charges; not extensive.
    """

    kind: Literal["pooled"] = "pooled"

    @property
    def capabilities(self) -> HeadCapabilities:
        """What may be asked of this head."""
        return HeadCapabilities(charges=False)


BackboneConfig = Annotated[PaiNNConfig | SchNetConfig | DensityConfig, Field(discriminator="kind")]
HeadConfig = Annotated[
    PhiConfig
    | QEqConfig
    | PhiCoulombConfig
    | LocalChargesConfig
    | PhiSpectralConfig
    | PooledConfig,
    Field(discriminator="kind"),
]


class ModelConfig(Settings):
    """A potential: one backbone, any number of electrostatics heads, core repulsion."""

    backbone: BackboneConfig = PaiNNConfig()
    heads: list[HeadConfig] = Field(default=[PhiConfig()])
    cutoff: float = Field(default=5.0, gt=0, le=20, description="r_c in Å")
    zbl: bool = Field(default=True, description="add the ZBL core repulsion")
    contact: bool = Field(
        default=True, description="add a wall below the closest distances of the training data"
    )
    total_charge: bool = Field(
        default=True, description="condition the features on the total charge"
    )
    charge_embedding: Literal["per-atom", "total"] = Field(
        default="per-atom",
        description="what of it each atom is told: 'per-atom' Q/N, so that n cells or n distant "
        "ions have n times the energy of one; 'total' Q itself, as files had it before this key",
    )
    charge_feedback: bool = Field(
        default=False,
        description="the heads' charges enter the features of one more message step, which adds "
        "an energy of its own (arXiv 2501.19179)",
    )
    dtype: Literal["float32", "float64"] = "float32"

    @property
    def sums_coulomb(self) -> bool:
        """Whether the energy depends on positions and cell beyond the edge vectors."""
        return any(head.capabilities.coulomb for head in self.heads)

    @property
    def feels_field(self) -> bool:
        """Whether there is one head that an electric field acts on, and it knows all of it.

        Charges of Φ are a latent field without a Coulomb energy, and with feedback the head alone
        does not know what the energy gains from its charges.
        """
        return self.sums_coulomb and len(self.heads) == 1 and not self.charge_feedback

    @classmethod
    def stored(cls, content: Mapping[str, Any]) -> "ModelConfig":
        """The configuration that a file holds: what it was written without is as it was then."""
        return cls(**{"charge_embedding": "total", **content})

    @model_validator(mode="after")
    def _heads_differ(self) -> "ModelConfig":
        kinds = [head.kind for head in self.heads]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"heads: expected at most one of each kind, got {', '.join(kinds)}")
        able = {head.kind: head.capabilities for head in self.heads}
        constrained = [kind for kind in kinds if able[kind].constrained]
        if len(constrained) > 1:
            raise ValueError(
                f"heads: expected at most one whose charges sum to the total charge, got "
                f"{', '.join(constrained)}: together they would carry it more than once; remove "
                "all but one"
            )
        with_potential = [kind for kind in kinds if able[kind].potential]
        if len(with_potential) > 1:
            raise ValueError(
                "heads: expected at most one with a potential of its own, got "
                f"{', '.join(with_potential)}; remove all but one"
            )
        if self.charge_feedback and not any(head.charges for head in able.values()):
            raise ValueError(
                "charge_feedback: expected a head with charges (phi, qeq, phi-coulomb, local), "
                f"got heads: {', '.join(kinds) or 'none'}"
            )
        return self
