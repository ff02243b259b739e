"""Compilation of networks by torch.compile, for the whole process: off unless it is switched on."""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

_MOST_VERSIONS = 64  # of one network's code: shapes of batches, train and eval mode, members of a pool

_enabled = False


def compile_networks(enabled: bool = True) -> None:
    """Says whether networks are compiled from now on, wherever a single derivative of them is taken.

    That is the real gradient, the inner loop and the evaluation; the matched gradient of the synthetic images is
    differentiated twice, which compiled networks do not allow. Every new shape of a batch takes some seconds to
    compile; the next network of the same architecture takes none. Results are the same up to rounding.
    """
    global _enabled
    _enabled = enabled


def compiled(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What calls the network, compiled if that is switched on and possible; the parameters are the network's own.

    Args:
        network: ``(n, C, H, W)`` to ``(n, num_classes)``.
        device: where it is.

    Returns:
        Not a module, so that an attribute of one does not register the network a second time.
    """
    if not _enabled or not _works(device.type):
        return network.__call__
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_VERSIONS)
    whole: Any = torch.compile(network, dynamic=False)
    return whole.__call__  # type: ignore[no-any-return]


@lru_cache(maxsize=8)
def _works(device: str) -> bool:
    """Compiles something tiny, and says so once if that fails."""
    try:
        with torch.inference_mode(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x.sin() + 1)(torch.ones(2, device=device))
    except Exception as error:  # whatever is missing: a compiler, Triton, this Python version
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        rank_zero_warn(
            f"Networks cannot be compiled here ({reason}); going on without. Install a C++ compiler (on a GPU: Triton) "
            "or leave the compilation off."
        )
        return False
    return True
