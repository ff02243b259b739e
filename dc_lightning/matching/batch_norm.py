"""BatchNorm while gradients are matched: statistics of real images, then kept (``main.py`` of the authors' code)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the network has a BatchNorm layer."""
    return bool(batch_norm_layers(network))


def batch_norm_layers(network: nn.Module) -> list[Any]:
    """All of them, in order."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def freeze_batch_norm(network: nn.Module, real: Tensor, chunk_size: int | None = None) -> None:
    """Updates the BatchNorm statistics by one forward pass of real images, then keeps them for the matching.

    A synthetic set is too small for statistics of its own, so the authors' code passes 16 real images per class, all
    classes in one batch, and puts every BatchNorm layer in eval mode. The momentum stays PyTorch's 0.1: fresh
    statistics move by a tenth only.

    More images than a chunk are passed chunk by chunk, once for every layer, each with the final statistics of those
    before it: the same up to rounding, in the memory of a chunk.

    Args:
        network: classifier; all its other layers are left in train mode.
        real: float, ``(n, C, H, W)``, normalised.
        chunk_size: images a pass, to bound the memory; None takes all at once.
    """
    network.train()
    layers = batch_norm_layers(network)
    with torch.no_grad():
        if chunk_size is None or len(real) <= chunk_size or any(layer.running_mean is None for layer in layers):
            network(real)
        else:
            _update_in_chunks(network, [layer for layer in layers if layer.training], real.split(chunk_size))
    for layer in layers:
        layer.eval()


def _note(seen: list[tuple[int, Tensor, Tensor]], layer: Any, inputs: tuple[Tensor]) -> None:
    """Forward pre-hook: notes how many values each channel of a chunk has, their variance and mean."""
    values = inputs[0].transpose(0, 1).flatten(1).to(layer.running_mean.dtype)
    seen.append((values.shape[1], *torch.var_mean(values, dim=1, correction=0)))


def _update_in_chunks(network: nn.Module, layers: list[Any], chunks: Sequence[Tensor]) -> None:
    """Updates the statistics of the layers as one forward pass of all chunks together would."""
    order: list[Any] = []
    hooks = [layer.register_forward_pre_hook(lambda layer, _: order.append(layer)) for layer in layers]
    for layer in layers:
        layer.eval()  # what a layer normalises by is set below
    network(chunks[0])
    for hook in hooks:
        hook.remove()
    updated = []
    for layer in dict.fromkeys(order):
        seen: list[tuple[int, Tensor, Tensor]] = []
        hook = layer.register_forward_pre_hook(partial(_note, seen))
        for chunk in chunks:
            network(chunk)
        hook.remove()
        total = sum(count for count, _, _ in seen)
        mean: Any = sum(count / total * chunk_mean for count, _, chunk_mean in seen)
        variance: Any = sum(count / total * (spread + (chunk_mean - mean) ** 2) for count, spread, chunk_mean in seen)
        updated.append((layer, layer.running_mean.clone(), layer.running_var.clone(), variance * total / (total - 1)))
        layer.running_mean.copy_(mean)  # the next layer's input is normalised by the whole batch's
        layer.running_var.copy_(variance)
    for layer, old_mean, old_variance, variance in updated:
        layer.num_batches_tracked += 1
        momentum = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        layer.running_mean.copy_(old_mean.lerp(layer.running_mean, momentum))
        layer.running_var.copy_(old_variance.lerp(variance, momentum))
