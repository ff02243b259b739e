"""Gradient matching of one class: the gradients of a real and of a synthetic batch, and their distance.

Paper, section 3.2, equation 9; the loop over classes in ``main.py`` of the authors' code.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from dc_lightning.distance import Distance

Forward = Callable[[Tensor], Tensor]


def network_gradient(
    network: nn.Module,
    images: Tensor,
    label: int,
    *,
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
        chunk_size: images a pass, to bound the memory; None takes all at once. The result is the same as long as the
            network treats images one by one (BatchNorm layers in eval mode).
        forward: the same network, compiled; None takes the network itself.

    Returns:
        One tensor per parameter, in the order of ``network.parameters()``.
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


def match_class(
    network: nn.Module,
    real: Tensor,
    synthetic: Tensor,
    label: int,
    distance: Distance,
    *,
    real_chunk_size: int | None = None,
    forward: Forward | None = None,
) -> tuple[Tensor, Tensor]:
    """Distance of the gradients of one class, and its derivative with respect to the synthetic images.

    Classes are independent given the network, so their derivatives may be taken one by one: that is the same as one
    backward pass over the sum, and holds the graph of one class only.

    Args:
        network: classifier, BatchNorm layers frozen (`freeze_batch_norm`).
        real: float, ``(batch, C, H, W)``, normalised.
        synthetic: float, ``(ipc, C, H, W)``, normalised.
        label: class of all the images.
        distance: see `dc_lightning.distance`.
        real_chunk_size: see `network_gradient`.
        forward: the same network, compiled, for the real images; see `network_gradient`.

    Returns:
        The distance, a detached scalar, and its derivative, of the shape of ``synthetic``.
    """
    synthetic = synthetic.detach().requires_grad_()
    real_gradient = network_gradient(network, real, label, chunk_size=real_chunk_size, forward=forward)
    synthetic_gradient = network_gradient(network, synthetic, label, create_graph=True)
    loss = distance(synthetic_gradient, real_gradient)
    (derivative,) = torch.autograd.grad(loss, synthetic)
    return loss.detach(), derivative


def match_classes(
    network: nn.Module,
    real: Tensor,
    synthetic: Tensor,
    labels: Tensor,
    distance: Distance,
    *,
    real_chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`match_class` for several classes in one pass: as many operations as for one, on larger tensors.

    Saves a GPU the launches of small kernels, and holds the graphs of all the classes at once. The same up to rounding
    for networks that draw nothing themselves; dropout draws otherwise.

    Args:
        network: as for `match_class`.
        real: float, ``(classes, batch, C, H, W)``, normalised.
        synthetic: float, ``(classes, ipc, C, H, W)``, normalised.
        labels: int64, ``(classes,)``.
        distance: see `dc_lightning.distance`.
        real_chunk_size: real images of each class a pass; None takes all at once.

    Returns:
        The distances, detached, ``(classes,)``, and their derivatives, of the shape of ``synthetic``.
    """
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def loss(parameters: dict[str, Tensor], images: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, (parameters, buffers), (images,))
        return cross_entropy(logits, label.expand(len(images)))

    def class_distance(images: Tensor, real_gradient: dict[str, Tensor], label: Tensor) -> Tensor:
        return distance(list(grad(loss)(parameters, images, label).values()), list(real_gradient.values()))

    real_gradient = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for chunk in real.split(real_chunk_size or real.shape[1], dim=1):
        gradient = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(parameters, chunk, labels)
        share = chunk.shape[1] / real.shape[1]
        real_gradient = {name: total + share * gradient[name] for name, total in real_gradient.items()}
    match = vmap(grad_and_value(class_distance), randomness="different")
    derivatives, distances = match(synthetic.detach(), real_gradient, labels)
    return distances.detach(), derivatives.detach()


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the network has a BatchNorm layer."""
    return bool(_batch_norm_layers(network))


def _batch_norm_layers(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def freeze_batch_norm(network: nn.Module, real: Tensor, chunk_size: int | None = None) -> None:
    """Updates the BatchNorm statistics by one forward pass of real images, then keeps them for the matching.

    A synthetic set is too small for statistics of its own, so the authors' code passes 16 real images per class, all
    classes in one batch, and puts every BatchNorm layer in eval mode. The momentum stays PyTorch's 0.1: fresh
    statistics move by a tenth only.

    More images than a chunk are passed chunk by chunk up to the first BatchNorm layer, then to the next with the
    statistics of the first, and so on: the same statistics up to rounding, in the memory of a chunk, for as many passes
    as there are layers, each of which a pass uses once.

    Args:
        network: classifier; all its other layers are left in train mode.
        real: float, ``(n, C, H, W)``, normalised.
        chunk_size: images a pass, to bound the memory; None takes all at once.
    """
    network.train()
    layers = _batch_norm_layers(network)
    with torch.no_grad():
        if chunk_size is None or len(real) <= chunk_size or any(layer.running_mean is None for layer in layers):
            network(real)
        else:
            _update_in_chunks(network, [layer for layer in layers if layer.training], real.split(chunk_size))
    for layer in layers:
        layer.eval()


class _Reached(BaseException):
    """A forward pass has come to a BatchNorm layer: which, how many values of each channel, their mean and variance."""


def _update_in_chunks(network: nn.Module, layers: list[Any], chunks: Sequence[Tensor]) -> None:
    """Updates the statistics of the layers as one forward pass of all chunks together would."""

    def stop(layer: Any, inputs: tuple[Tensor]) -> None:
        channels = inputs[0].transpose(0, 1).flatten(1).to(layer.running_mean.dtype)
        variance, mean = torch.var_mean(channels, dim=1, correction=0)
        raise _Reached(layer, channels.shape[1], mean, variance)

    def next_layer(chunk: Tensor) -> tuple[Any, ...] | None:
        try:
            network(chunk)
        except _Reached as reached:
            return reached.args  # and not what its traceback holds
        return None

    hooks = {layer: layer.register_forward_pre_hook(stop) for layer in layers}
    updated = []
    try:
        while hooks and (found := [reached for chunk in chunks if (reached := next_layer(chunk))]):
            layer, counts = found[0][0], [count for _, count, _, _ in found]
            hooks.pop(layer).remove()
            means, variances = (torch.stack(parts) for parts in list(zip(*found, strict=True))[2:])
            shares = means.new_tensor(counts)[:, None] / sum(counts)
            mean = (shares * means).sum(dim=0)
            variance = (shares * (variances + (means - mean) ** 2)).sum(dim=0)
            unbiased = variance * sum(counts) / (sum(counts) - 1)
            updated.append((layer, layer.running_mean.clone(), layer.running_var.clone(), unbiased))
            layer.eval()
            layer.running_mean.copy_(mean)  # what the pass through all layers normalises by
            layer.running_var.copy_(variance)
    finally:
        for hook in hooks.values():
            hook.remove()
    for layer, old_mean, old_variance, variance in updated:
        layer.num_batches_tracked += 1
        momentum = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        layer.running_mean.copy_(old_mean.lerp(layer.running_mean, momentum))
        layer.running_var.copy_(old_variance.lerp(variance, momentum))
