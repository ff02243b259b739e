"""Compilation of networks by torch.compile, and replay of recorded CUDA graphs: off unless they are switched on."""

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from dc_lightning.errors import first_line

Loss = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""See `Condenser.loss`."""

_MOST_VERSIONS = 64  # of one network's code: shapes of batches, train and eval mode, members of a pool

_enabled = False
_replaying = False
_recording = False  # a step, within which no network is recorded by itself


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
    """A function that calls the network, ``(n, C, H, W)`` to ``(n, num_classes)``, replayed or compiled if that is on.

    Where that fails (no compiler, or an operation that is not supported), it warns once and switches compilation off.
    The parameters are the network's own; it is not a module, so that an attribute of one does not register them again.
    """
    if _replaying:
        return _replayed(network)
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


def replay_graphs(enabled: bool = True) -> None:
    """Switches CUDA graphs on or off for the whole process: a GPU then waits less for Python.

    The loss of a class with its derivative, and a network's forward and backward pass in training, are recorded at
    their first call, and replayed afterwards. They hold the memory of their batches until the end of the run. What is
    recorded must not wait for the GPU, nor depend on Python's state.
    """
    global _replaying
    _replaying = enabled
    warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")  # that of the recording, by design


def replays_graphs() -> bool:
    """Whether that is switched on."""
    return _replaying


class Recorder:
    """The loss of a class, and its derivative with respect to the synthetic images; replayed, if that is switched on.

    The network is the same object at every call with the same label, its weights in the same memory.
    """

    def __init__(self) -> None:
        self._records: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[Tensor], list[Tensor]]] = {}
        self._pool: Any = None

    def __call__(self, loss: Loss, network: nn.Module, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
        """A scalar and a tensor ``(n, C, H, W)``, valid until the next call; see `Condenser.loss`."""

        def slope(real: Tensor, synthetic: Tensor) -> list[Tensor]:
            synthetic = synthetic.detach().requires_grad_()
            value = loss(network, real, synthetic, label)
            return [value.detach(), *torch.autograd.grad(value, synthetic)]

        if not _replaying or not real.is_cuda:
            return slope(real, synthetic)
        key = label, real.shape, synthetic.shape
        if key not in self._records:
            try:
                self._records[key] = self._record(slope, [real, synthetic])
            except RuntimeError as error:
                _cannot_replay(error)
                return slope(real, synthetic)
        graph, places, found = self._records[key]
        for place, tensor in zip(places, (real, synthetic), strict=True):
            place.copy_(tensor.detach())
        graph.replay()
        return found

    def _record(self, function: Callable[..., list[Tensor]], given: list[Tensor]) -> Any:
        global _recording
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        places, graph, stream = (
            [tensor.detach().clone() for tensor in given],
            torch.cuda.CUDAGraph(),
            torch.cuda.Stream(),
        )
        _recording = True
        try:
            with torch.random.fork_rng([given[0].device]):
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(2):  # libraries set themselves up
                        function(*places)
                torch.cuda.current_stream().wait_stream(stream)
                torch.clear_autocast_cache()  # a cast weight would be that of now
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    found = function(*places)
                torch.clear_autocast_cache()
        finally:
            _recording = False
        return graph, places, found


def _replayed(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network, whose passes in training are recorded, one for each shape of a batch."""
    calls: dict[Hashable, Callable[[Tensor], Tensor]] = {}

    def forward(images: Tensor) -> Tensor:
        recordable = images.is_cuda and torch.is_grad_enabled() and not torch.is_autocast_enabled("cuda")
        if not _replaying or _recording or not recordable:
            return network(images)
        key = (images.shape, network.training)
        if key not in calls:
            try:
                calls[key] = _record_network(network, images)
            except RuntimeError as error:
                _cannot_replay(error)
                return network(images)
        return calls[key](images)

    return forward


def _record_network(network: nn.Module, images: Tensor) -> Any:
    kept = [buffer.clone() for buffer in network.buffers()]  # statistics, which a trial run moves
    with torch.random.fork_rng([images.device]):
        call = torch.cuda.make_graphed_callables(nn.Sequential(network), (images.detach().clone(),))
    for buffer, before in zip(network.buffers(), kept, strict=True):
        buffer.copy_(before)
    return call


def _cannot_replay(error: RuntimeError) -> None:
    replay_graphs(False)
    rank_zero_warn(f"This cannot be recorded as a CUDA graph ({first_line(error)}); continuing without.")
