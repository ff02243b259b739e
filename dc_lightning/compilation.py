"""Compilation of networks by torch.compile, for the whole process: off unless it is switched on."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from dc_lightning.errors import first_line

_MOST_VERSIONS = 64  # of one network's code: shapes of batches, train and eval mode, members of a pool

_enabled = False


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
    """A function that calls the network, ``(n, C, H, W)`` to ``(n, num_classes)``, compiled if compilation is on.

    Where that fails (no compiler, or an operation that is not supported), it warns once and switches compilation off.
    The parameters are the network's own; it is not a module, so that an attribute of one does not register them again.
    """
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
