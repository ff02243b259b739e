"""Methods of condensation: one file, one class, one YAML in configs/methods each."""

from dc_lightning.methods.base import Condenser
from dc_lightning.methods.distribution_matching import DistributionMatching
from dc_lightning.methods.dream import DREAM
from dc_lightning.methods.frepo import FRePo
from dc_lightning.methods.gradient_matching import CondensationModule
from dc_lightning.methods.idc import IDC

__all__ = ["DREAM", "IDC", "CondensationModule", "Condenser", "DistributionMatching", "FRePo"]
