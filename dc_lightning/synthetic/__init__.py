"""Synthetic sets in plain torch: images, labels and what they came from; how they start; files of them."""

from dc_lightning.synthetic.formats import export
from dc_lightning.synthetic.reading import load_synthetic
from dc_lightning.synthetic.ready import ready_sets
from dc_lightning.synthetic.synthetic_set import SyntheticSet

__all__ = ["SyntheticSet", "export", "load_synthetic", "ready_sets"]
