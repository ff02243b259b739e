"""Compilation of networks by torch.compile, and replay of recorded CUDA graphs: off unless they are switched on."""

import gc
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from dc_lightning.errors import InputError, first_line

Loss = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""See `Condenser.loss`."""

_MOST_VERSIONS = 64  # of one network's code: shapes of batches, train and eval mode, members of a pool

_enabled = False
_replaying = False
_recording = False  # a loss, whose networks must not be recorded by themselves meanwhile


def compile_networks(enabled: bool = True) -> None:
    """Switches compilation on or off for the whole process, wherever a single derivative of a network is taken.

    That is the real gradient, the inner loop and the evaluation; the matched gradient of the synthetic images is
    differentiated twice, which compiled networks do not allow. Every new shape of a batch takes some seconds to
    compile; another network of the same architecture takes none, unless its code depends on numbers of its own.
    Results are the same up to rounding, and up to the draws of networks that draw themselves (dropout).
    """
    global _enabled
    _enabled = enabled


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function that calls the network, ``(n, C, H, W)`` to ``(n, num_classes)``, compiled or replayed if that is on.

    Where compilation fails (no compiler, or an operation that is not supported), it warns once and switches it off.
    A replayed pass is valid until the next one of that shape: one backward pass after each forward pass. The
    parameters are the network's own; it is not a module, so that an attribute of one does not register them again.
    """
    return _replayed(network, _compiled(network)) if _replaying else _compiled(network)


def _compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    if not _enabled:
        return network.__call__
    # an older name of recompile_limit, which all supported versions have
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, _MOST_VERSIONS)
    call: Callable[[Tensor], Tensor] | None = None

    def forward(images: Tensor) -> Tensor:
        nonlocal call
        try:
            if call is None:
                whole: Any = torch.compile(network, dynamic=False) if _enabled else network
                call = whole.__call__
            return call(images)
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            of_the_compiler = isinstance(error, torch._dynamo.exc.TorchDynamoException) or "torch.compile" in str(error)
            if not _enabled or not of_the_compiler:  # what the network itself says
                raise
            compile_networks(False)
            rank_zero_warn(
                f"Networks cannot be compiled here ({first_line(error)}); continuing without. Install a C++ compiler "
                "(on a GPU: Triton), or leave the compilation off."
            )
            call = network.__call__
            return call(images)

    return forward


def uncached_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Mixed precision as it is, but casting weights at each use: PyTorch's cache would keep those of before a step.

    Some versions of Lightning open one context with that cache for a whole training step, in which a network here
    takes several steps of its optimizer.
    """
    return torch.autocast(device.type, enabled=torch.is_autocast_enabled(device.type), cache_enabled=False)


def replay_graphs(enabled: bool = True) -> None:
    """Switches CUDA graphs on or off for the whole process: a GPU then waits less for Python.

    The loss of a class with its derivative is recorded at the first call for that class, and a network's passes in
    training at the first batch of a shape; later calls replay the same work on the same memory, which they hold. So a
    loss may read only its arguments, weights, and tensors that are changed in place, draw from torch's own generators
    alone, and never wait for the GPU. In mixed precision networks are not recorded by themselves.
    """
    global _replaying
    _replaying = enabled
    if enabled:
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")  # that of the recording


class Recorder:
    """The loss of a class and its derivative; replayed, if that is switched on.

    The network is the same object at every call with the same label, its weights in the same memory.
    """

    def __init__(self) -> None:
        self._records: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[Tensor], list[Tensor]]] = {}
        self._pool: Any = None

    def __call__(
        self, loss: Loss, network: nn.Module, real: Tensor, synthetic: Tensor, label: int, stored: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Condenser.loss`: its value, a scalar, and its derivative with respect to the stored images.

        Raises:
            InputError: if the loss cannot be recorded.
        """
        if not _replaying or not real.is_cuda or real.requires_grad:
            value = loss(network, real, synthetic, label)
            return value.detach(), torch.autograd.grad(value, stored)[0]
        key = label, real.shape, synthetic.shape
        if key not in self._records:
            self._records[key] = self._record(loss, network, real, synthetic, label)
        graph, places, (value, slope) = self._records[key]
        for place, tensor in zip(places, (real, synthetic), strict=True):
            place.copy_(tensor.detach())
        graph.replay()
        return value, torch.autograd.grad(synthetic, stored, slope)[0]

    def _record(self, loss: Loss, network: nn.Module, real: Tensor, synthetic: Tensor, label: int) -> Any:
        global _recording
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        real, synthetic = real.detach().clone(), synthetic.detach().clone()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()

        def run() -> list[Tensor]:
            images = synthetic.detach().requires_grad_()
            value = loss(network, real, images.view_as(images), label)
            return [value.detach(), *torch.autograd.grad(value, images)]

        _recording = True
        try:
            with _trial(network, real.device, "The loss"):
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(2):  # libraries set themselves up
                        run()
                torch.cuda.current_stream().wait_stream(stream)
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    found = run()
        finally:
            _recording = False
        return graph, [real, synthetic], found


def renew(kept: nn.Module | None, fresh: nn.Module) -> bool:
    """Gives the network that recorded work reads all of a fresh one, if both are alike; says whether it did."""
    if not _replaying or kept is None or str(kept) != str(fresh):
        return False
    old, new = ([*network.parameters(), *network.buffers()] for network in (kept, fresh))
    if [(tensor.shape, tensor.device) for tensor in old] != [(tensor.shape, tensor.device) for tensor in new]:
        return False
    with torch.no_grad():
        for before, after in zip(old, new, strict=True):
            before.copy_(after)
    for part, other in zip(kept.modules(), fresh.modules(), strict=True):
        part.training = other.training
    kept.zero_grad()
    return True


def _replayed(network: nn.Module, otherwise: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The network, whose passes in training are recorded, one for each shape of a batch."""
    calls: dict[Hashable, Any] = {}

    def forward(images: Tensor) -> Tensor:
        if not _replaying or not images.is_cuda or torch.is_autocast_enabled("cuda"):
            return otherwise(images)
        if _recording or not torch.is_grad_enabled() or images.requires_grad:
            return network(images)
        key = images.shape, *(part.training for part in network.modules())
        if key not in calls:
            gc.collect()  # of the networks before this one
            with _trial(network, images.device, "The network"):
                calls[key] = torch.cuda.make_graphed_callables(nn.Sequential(network), (images.detach().clone(),))
        return cast(Tensor, calls[key](images))

    return forward


@contextmanager
def _trial(network: nn.Module, device: torch.device, what: str) -> Iterator[None]:
    """Leaves the statistics of a network and the random numbers as they were, whatever runs meanwhile."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        with torch.random.fork_rng([device]):
            yield
    except RuntimeError as error:
        raise InputError(
            f"{what} cannot be recorded as a CUDA graph ({first_line(error)}); leave out --cuda_graphs."
        ) from error
    with torch.no_grad():
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)
