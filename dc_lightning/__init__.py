"""Dataset condensation on PyTorch Lightning: DC (Zhao, Mopuri, Bilen, ICLR 2021) and the methods that grew from it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dc_lightning.data.datamodule import CondensationDataModule
    from dc_lightning.errors import InputError
    from dc_lightning.evaluation import Evaluator, Recipe, load_recipe
    from dc_lightning.methods import DREAM, IDC, CondensationModule, Condenser, DistributionMatching, FRePo
    from dc_lightning.run.checkpoints import Checkpoints
    from dc_lightning.run.evaluation_callback import EvaluationCallback
    from dc_lightning.run.progress import RunProgress
    from dc_lightning.synthetic import SyntheticSet, load_synthetic

__version__ = "0.2.0"

_MODULES = {
    "DREAM": "methods",
    "IDC": "methods",
    "Checkpoints": "run.checkpoints",
    "CondensationDataModule": "data.datamodule",
    "CondensationModule": "methods",
    "Condenser": "methods",
    "DistributionMatching": "methods",
    "FRePo": "methods",
    "EvaluationCallback": "run.evaluation_callback",
    "Evaluator": "evaluation",
    "InputError": "errors",
    "Recipe": "evaluation",
    "RunProgress": "run.progress",
    "SyntheticSet": "synthetic",
    "load_recipe": "evaluation",
    "load_synthetic": "synthetic",
}

__all__ = [
    "DREAM",
    "IDC",
    "Checkpoints",
    "CondensationDataModule",
    "CondensationModule",
    "Condenser",
    "DistributionMatching",
    "EvaluationCallback",
    "Evaluator",
    "FRePo",
    "InputError",
    "Recipe",
    "RunProgress",
    "SyntheticSet",
    "__version__",
    "load_recipe",
    "load_synthetic",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: Lightning alone takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module 'dc_lightning' has no attribute '{name}'")
    return getattr(import_module(f"dc_lightning.{_MODULES[name]}"), name)
