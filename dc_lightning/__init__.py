"""Dataset condensation with gradient matching (Zhao, Mopuri, Bilen, ICLR 2021), on PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dc_lightning.callbacks import EvaluationCallback
    from dc_lightning.checkpoints import Checkpoints
    from dc_lightning.condensation import CondensationModule
    from dc_lightning.data import CondensationDataModule
    from dc_lightning.errors import InputError
    from dc_lightning.evaluation import Recipe, evaluate_sets
    from dc_lightning.progress import RunProgress
    from dc_lightning.synthetic import SyntheticSet, load_synthetic

__version__ = "0.1.0"

_HOMES = {
    "CondensationDataModule": "data",
    "CondensationModule": "condensation",
    "Checkpoints": "checkpoints",
    "EvaluationCallback": "callbacks",
    "InputError": "errors",
    "Recipe": "evaluation",
    "RunProgress": "progress",
    "SyntheticSet": "synthetic",
    "evaluate_sets": "evaluation",
    "load_synthetic": "synthetic",
}

__all__ = [
    "Checkpoints",
    "CondensationDataModule",
    "CondensationModule",
    "EvaluationCallback",
    "InputError",
    "Recipe",
    "RunProgress",
    "SyntheticSet",
    "__version__",
    "evaluate_sets",
    "load_synthetic",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: Lightning alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dc_lightning' has no attribute '{name}'")
    return getattr(import_module(f"dc_lightning.{_HOMES[name]}"), name)
