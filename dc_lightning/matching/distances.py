"""Distances between two gradients, each given as one tensor per network parameter.

A distance is any callable ``(first, second) -> scalar tensor`` that is differentiable twice. The paper's own is
`layerwise_cosine` (paper, section 3.2 and appendix A; ``match_loss`` of the authors' code).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Gradient = Sequence[Tensor]
Distance = Callable[[Gradient, Gradient], Tensor]

_EPSILON = 1e-6  # authors' code, added to the product of the norms


def layerwise_cosine(first: Gradient, second: Gradient) -> Tensor:
    """Sum over layers and output nodes of one minus the cosine of the two gradients of that node.

    A tensor is read as one row per output node: convolutions ``(out, in * h * w)``, LayerNorm's weight and bias
    ``(C, h * w)``, linear layers as they are. One-dimensional tensors (biases, the affine parameters of the other
    norms) are skipped, as in the authors' code; the paper does not say so. In [0, 2 * number of rows].
    """
    rows = [
        1 - (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + _EPSILON)
        for a, b in ((a.flatten(1), b.flatten(1)) for a, b in zip(first, second, strict=True) if a.dim() > 1)
    ]
    if not rows:
        raise ValueError(
            "The distance 'ours' (layerwise_cosine) compares the weights of layers, but the network has none of "
            "two or more dimensions; use 'mse' or 'cos', which compare all parameters."
        )
    return torch.cat(rows).sum()


def squared_error(first: Gradient, second: Gradient) -> Tensor:
    """Squared Euclidean distance of the two gradients, as one vector each (``mse``)."""
    return torch.stack([(a - b).square().sum() for a, b in zip(first, second, strict=True)]).sum()


def absolute_error(first: Gradient, second: Gradient) -> Tensor:
    """Sum of the absolute differences (``l1`` of IDC's code)."""
    return torch.stack([(a - b).abs().sum() for a, b in zip(first, second, strict=True)]).sum()


def mean_absolute_error(first: Gradient, second: Gradient) -> Tensor:
    """Sum over layers and output nodes of the mean absolute difference of that node (``l1_mean`` of IDC's code)."""
    return torch.stack([(a - b).abs().sum() * len(a) / a.numel() for a, b in zip(first, second, strict=True)]).sum()


def cosine(first: Gradient, second: Gradient) -> Tensor:
    """One minus the cosine of the two gradients, all parameters flattened into one vector (``cos``), in [0, 2]."""
    a = torch.cat([tensor.flatten() for tensor in first])
    b = torch.cat([tensor.flatten() for tensor in second])
    return 1 - (a * b).sum() / (a.norm() * b.norm() + _EPSILON)


DISTANCES: dict[str, Distance] = {
    "ours": layerwise_cosine,
    "mse": squared_error,
    "cos": cosine,
    "l1": absolute_error,
    "l1_mean": mean_absolute_error,
}
"""By the names of the papers' tables and of the option --dis_metric of DC's code; IDC's ``cos`` is ``ours``."""
