"""Embeddings of images: what comes before the last linear layer of a network (DM, section 3.2)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dc_lightning.errors import InputError


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """Features of images before the last linear layer, float, ``(n, C, H, W)`` to ``(n, d)``.

    Args:
        network: one with a method ``embed``, as all of ours, or any other whose last linear layer is the classifier.
        images: normalised.

    Raises:
        InputError: if the network has no linear layer that it uses.
    """
    own: Callable[[Tensor], Tensor] | None = getattr(network, "embed", None)
    if own is not None:
        return own(images).flatten(1)
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    found: list[Tensor] = []
    hooks = [linear[-1].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))] if linear else []
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise InputError(
            f"Embeddings are taken before the last linear layer, but {type(network).__name__} has none that it uses; "
            "give it a method embed(images) with (n, d) features, or take another network."
        )
    return found[0].flatten(1)


def embed_chunks(network: nn.Module, chunks: Iterable[Tensor]) -> Tensor:
    """Features, as of `embed`, of images that pass a chunk at a time, without a graph: float, ``(n, d)``."""
    with torch.no_grad():
        return torch.cat([embed(network, images) for images in chunks])
