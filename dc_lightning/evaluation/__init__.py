"""Evaluation: fresh networks are trained on a set by a recipe, and tested on the real test set."""

from dc_lightning.evaluation.evaluator import Evaluator, Score
from dc_lightning.evaluation.recipe import Recipe, load_recipe

__all__ = ["Evaluator", "Recipe", "Score", "load_recipe"]
