"""Methods of condensation: one file, one class, one YAML in configs/methods each."""

from dc_lightning.methods.base import Condenser
from dc_lightning.methods.distribution_matching import DistributionMatching
from dc_lightning.methods.gradient_matching import CondensationModule

__all__ = ["CondensationModule", "Condenser", "DistributionMatching"]
