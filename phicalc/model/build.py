"""Backbones and heads from their configurations."""

from typing import List

from ase.data import chemical_symbols
from torch import nn

from phicalc.electrostatics.heads.local import LocalChargesHead
from phicalc.electrostatics.heads.phi import PhiHead
from phicalc.electrostatics.heads.phi_coulomb import PhiCoulombHead
from phicalc.electrostatics.heads.phi_spectral import PhiSpectralHead
from phicalc.electrostatics.heads.pooled import PooledHead
from phicalc.electrostatics.heads.qeq import QEqHead
from phicalc.errors import ConfigError
from phicalc.model.config import (
    BackboneConfig,
    DensityConfig,
    HeadConfig,
    LocalChargesConfig,
    PhiCoulombConfig,
    PhiSpectralConfig,
    PooledConfig,
    QEqConfig,
    SchNetConfig,
)
from phicalc.nn.density import DensityNetwork
from phicalc.nn.painn import PaiNN
from phicalc.nn.schnet import SchNet


def build_backbone(
    config: BackboneConfig, cutoff: float, num_species: int, average_neighbours: float
) -> nn.Module:
    """The message-passing network that a configuration names."""
    if isinstance(config, SchNetConfig):
        return SchNet(
            config.features,
            config.filters,
            config.layers,
            config.radial,
            cutoff,
            config.envelope,
            num_species,
            average_neighbours,
        )
    network = DensityNetwork if isinstance(config, DensityConfig) else PaiNN
    return network(
        config.features, config.layers, config.radial, cutoff, num_species, average_neighbours
    )


def build_head(
    config: HeadConfig, features: int, layers: int, elements: List[int], cutoff: float
) -> nn.Module:
    """The electrostatics head that a configuration names."""
    if isinstance(config, QEqConfig):
        return QEqHead(features, layers, elements, cutoff, config.hardness, config.accuracy)
    if isinstance(config, LocalChargesConfig):
        return LocalChargesHead(features, layers, elements, cutoff, config.accuracy)
    if isinstance(config, PhiCoulombConfig):
        return PhiCoulombHead(
            features,
            layers,
            elements,
            cutoff,
            config.sigma,
            config.hardness,
            formal_charges(config, elements),
            config.base,
            config.coulomb,
            config.accuracy,
        )
    if isinstance(config, PhiSpectralConfig):
        return PhiSpectralHead(
            features, layers, elements, cutoff, config.sigma, config.modes, config.width
        )
    if isinstance(config, PooledConfig):
        return PooledHead(features, layers)
    return PhiHead(
        features,
        layers,
        elements,
        cutoff,
        config.sigma,
        config.mu,
        config.weights == "random",
        config.seed,
    )


def formal_charges(config: PhiCoulombConfig, elements: List[int]) -> List[float]:
    """Formal charge | e of each element of the model."""
    symbols = [chemical_symbols[z] for z in elements]
    unknown = sorted(set(config.formal_charges) - set(symbols))
    if unknown:
        raise ConfigError(
            f"formal_charges: expected elements of the model ({', '.join(symbols)}), "
            f"got {', '.join(unknown)}"
        )
    return [config.formal_charges.get(symbol, 0.0) for symbol in symbols]
