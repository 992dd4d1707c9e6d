"""Another name of :mod:`phicalc.workflows.crystal.elasticity`, for older scripts."""

from phicalc.workflows.crystal.elasticity import ElasticConstants, ElasticResult, ElasticSettings

__all__ = ["ElasticConstants", "ElasticResult", "ElasticSettings"]
