"""Gradient of one class' loss with respect to the network: what gradient matching compares (paper, equation 9)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Forward = Callable[[Tensor], Tensor]


def network_gradient(
    network: nn.Module,
    images: Tensor,
    label: int,
    create_graph: bool = False,
    chunk_size: int | None = None,
    forward: Forward | None = None,
) -> list[Tensor]:
    """Gradient of the mean cross-entropy of one class' images with respect to all network parameters.

    Args:
        network: classifier, ``(n, C, H, W)`` to ``(n, num_classes)``.
        images: float, ``(n, C, H, W)``, normalised.
        label: class of all the images.
        create_graph: keep the graph, to differentiate the gradient itself.
        chunk_size: images a pass, None for all; the same as long as the network treats images one by one.
        forward: the same network, see `compiled`; None takes the network itself.

    Returns:
        One tensor per parameter, in their order.
    """
    parameters = list(network.parameters())
    total: list[Tensor] | None = None
    for chunk in images.split(chunk_size or len(images)):
        labels = torch.full((len(chunk),), label, device=chunk.device)
        loss = cross_entropy((forward or network)(chunk), labels, reduction="sum") / len(images)
        gradient = torch.autograd.grad(loss, parameters, create_graph=create_graph)
        total = list(gradient) if total is None else [a + b for a, b in zip(total, gradient, strict=True)]
    assert total is not None
    return total
