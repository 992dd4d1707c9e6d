"""What a model is made of, as a validated configuration."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class StrictModel(BaseModel):
    """Base of all configurations: an unknown key is an error, not a silent nothing."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class PaiNNConfig(StrictModel):
    """Polarisable atom interaction network (arXiv 2102.03150)."""

    kind: Literal["painn"] = "painn"
    features: int = Field(default=64, ge=1, description="width F of scalar and vector channels")
    layers: int = Field(default=3, ge=1, description="message-passing steps T")
    radial: int = Field(default=20, ge=1, description="number of radial Bessel functions")


class SchNetConfig(StrictModel):
    """Continuous-filter convolutional network (arXiv 1706.08566)."""

    kind: Literal["schnet"] = "schnet"
    features: int = Field(default=64, ge=1, description="width F of the atom features")
    filters: int = Field(default=64, ge=1, description="width of the continuous filters")
    layers: int = Field(default=3, ge=1, description="message-passing steps T")
    radial: int = Field(default=50, ge=2, description="number of Gaussian radial functions")
    envelope: Literal["polynomial", "cosine"] = Field(
        default="polynomial", description="cutoff function; 'cosine' is the paper's and only C1"
    )


class PhiConfig(StrictModel):
    """Graph-Poisson head (arXiv 2505.14606), in its variational form."""

    kind: Literal["phi"] = "phi"
    sigma: float = Field(default=2.0, gt=0, description="decay length of the edge weights in Å")
    mu: float = Field(default=0.1, gt=0, description="starting value of the learned screening μ")
    basis_size: int = Field(
        default=32, ge=1, description="Laplacian eigenvectors kept in the cache"
    )


BackboneConfig = Annotated[PaiNNConfig | SchNetConfig, Field(discriminator="kind")]
HeadConfig = Annotated[PhiConfig, Field(discriminator="kind")]


class ModelConfig(StrictModel):
    """A potential: one backbone, any number of electrostatics heads, core repulsion."""

    backbone: BackboneConfig = PaiNNConfig()
    heads: list[HeadConfig] = Field(default_factory=lambda: [PhiConfig()])
    cutoff: float = Field(default=5.0, gt=0, le=20, description="r_c in Å")
    zbl: bool = Field(default=True, description="add the ZBL core repulsion")
    total_charge: bool = Field(
        default=True, description="condition the features on the total charge"
    )
    dtype: Literal["float32", "float64"] = "float32"
