"""Pools of test networks (``get_eval_pool`` of the authors' code)."""

from collections.abc import Sequence

from dc_lightning.errors import InputError, suggestion
from dc_lightning.networks import NETWORKS
from dc_lightning.parts import Spec

POOLS: dict[str, list[str]] = {
    "M": ["MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"],
    "B": ["ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"],
    "W": ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"],
    "D": ["ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"],
    "A": ["ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"],
    "P": ["ConvNetNP", "ConvNetMP", "ConvNetAP"],
    "N": ["ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"],
}
"""By name, besides ``S`` and ``SS``."""


def pool(networks: str | Sequence[Spec], condensed_with: Spec) -> list[Spec]:
    """The test networks that a pool's name or a list stands for.

    Args:
        networks: ``S``, the condensing network with its name cut at "BN", because a small set has no useful batch
            statistics; ``SS``, the condensing network itself; a key of `POOLS`; one network's name; or a list.
        condensed_with: the condensing network.

    Raises:
        InputError: if the list is empty, or the name unknown.
    """
    if not isinstance(networks, str):
        if not networks:
            raise InputError("evaluation.networks is empty: name at least one test network, or a pool such as S or M.")
        return list(networks)
    if networks == "SS":
        return [condensed_with]
    if networks == "S":
        is_ours = isinstance(condensed_with, str) and not {".", ":"} & set(condensed_with)
        return [condensed_with.split("BN")[0] if is_ours and isinstance(condensed_with, str) else condensed_with]
    if networks not in POOLS and networks not in NETWORKS and not {".", ":"} & set(networks):
        raise InputError(
            f"Unknown pool or network '{networks}': expected one of the pools S, SS, {', '.join(POOLS)}, one of the "
            f"networks {', '.join(NETWORKS)}, the import path of your own, or a list of networks."
            + suggestion(networks, NETWORKS)
        )
    return list(POOLS.get(networks, [networks]))
