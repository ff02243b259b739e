"""The synthetic images that a condensation starts from: noise, real images, or cluster centres of real images."""

from typing import Literal, get_args

import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from dc_lightning.data import CondensationDataModule
from dc_lightning.errors import InputError
from dc_lightning.seeds import derive_generator, derive_seed

Init = Literal["noise", "real", "k-means"]
INITS: tuple[str, ...] = get_args(Init)


def initial_images(init: Init, ipc: int, data: CondensationDataModule, seed: int) -> Tensor:
    """Synthetic images before the first matching step, class after class.

    Args:
        init: ``noise``, standard normal in normalised space, as in the paper's tables; ``real``, random real images of
            the class; ``k-means``, centres of ipc clusters of all its real images, by pixels.
        ipc: images per class.
        data: set up.
        seed: of the draws; the number of processes and threads changes nothing.

    Returns:
        float, ``(num_classes * ipc, C, H, W)``, normalised, on the CPU.

    Raises:
        InputError: if a class has fewer than ipc real images, and they are needed.
    """
    assert data.real is not None
    if init == "noise":
        shape = data.num_classes * ipc, data.channels, *data.image_size
        return torch.randn(shape, generator=derive_generator(seed, "init"))
    few = [
        f"{label} ({data.class_names[label]}: {count})" for label, count in enumerate(data.real.counts()) if count < ipc
    ]
    if few:
        raise InputError(
            f"init='{init}' needs at least ipc={ipc} training images of every class, but there are fewer of "
            f"class {', '.join(few)}; take init='noise' or a smaller ipc."
        )
    if init == "real":
        draws = [data.real.draw(label, derive_generator(seed, "init", label), ipc) for label in range(data.num_classes)]
    else:
        draws = [
            cluster_centres(data.real.take(rows), ipc, derive_seed(seed, "init", label))
            for label, rows in enumerate(data.real.rows)
        ]
    return torch.cat(draws).cpu()


def cluster_centres(images: Tensor, count: int, seed: int) -> Tensor:
    """Centres of k-means++ clusters of images, by pixels.

    Args:
        images: float, ``(n, C, H, W)``, of one class.
        count: clusters, at most n.
        seed: of the first centres.

    Returns:
        float, ``(count, C, H, W)``.
    """
    flat = images.flatten(1).double().cpu().numpy()
    with threadpool_limits(1):  # more threads add up in an order of their own
        clusters = KMeans(count, n_init=1, random_state=seed % 2**32).fit(flat)
    return torch.from_numpy(clusters.cluster_centers_).float().view(count, *images.shape[1:])
