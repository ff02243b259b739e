"""The synthetic images that a condensation starts from: noise, real images, or cluster centres of real images."""

import warnings
from typing import TYPE_CHECKING, Literal, get_args

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from dc_lightning.errors import InputError
from dc_lightning.seeds import derive_generator, derive_seed

if TYPE_CHECKING:
    from dc_lightning.data.real import RealImages

Init = Literal["noise", "real", "k-means"]
INITS: tuple[str, ...] = get_args(Init)


def initial_images(init: Init, ipc: int, real: "RealImages", seed: int) -> Tensor:
    """Synthetic images before the first matching step, class after class.

    Args:
        init: ``noise``, standard normal in normalised space, as in the paper's tables; ``real``, random real images of
            the class; ``k-means``, centres of ipc clusters of all its real images, by pixels, which reads every image
            once and holds a class at a time in memory, several times over. At ipc 1 that is the mean of the class.
        ipc: images per class, at least 1.
        real: the training images.
        seed: of the draws; on one machine the number of processes and threads changes nothing.

    Returns:
        float, ``(num_classes * ipc, C, H, W)``, normalised, on the CPU.

    Raises:
        InputError: if a class has fewer than ipc real images, or for ``k-means`` distinct ones, and they are needed.
    """
    if init == "noise":
        shape = real.num_classes * ipc, *real.image_shape
        return torch.randn(shape, generator=derive_generator(seed, "init"))
    _require(ipc, real.counts(), real, f"init='{init}' needs at least ipc={ipc} training images")
    if init == "real":
        draws = [real.draw(label, derive_generator(seed, "init", label), ipc) for label in range(real.num_classes)]
        return torch.cat(draws).cpu()
    centres = [
        cluster_centres(real.take(rows), ipc, derive_seed(seed, "init", label)) for label, rows in enumerate(real.rows)
    ]
    found = [len(images) for images in centres]
    _require(ipc, found, real, f"init='k-means' needs at least ipc={ipc} distinct training images")
    return torch.cat(centres)


def _require(ipc: int, counts: list[int], real: "RealImages", need: str) -> None:
    few = [f"{label} ({real.class_names[label]}: {count})" for label, count in enumerate(counts) if count < ipc]
    if few:
        raise InputError(
            f"{need} of every class, but there are fewer of class {', '.join(few)}; take init='noise' or a smaller ipc."
        )


def cluster_centres(images: Tensor, count: int, seed: int) -> Tensor:
    """Centres of k-means++ clusters of images, by pixels, up to scikit-learn's tolerance.

    Args:
        images: float, ``(n, C, H, W)``, of one class.
        count: clusters, from 1 to n.
        seed: of the first centres.

    Returns:
        float, ``(count, C, H, W)``, on the CPU; fewer, where there are not as many distinct images.
    """
    flat = images.flatten(1).cpu().double().numpy()
    clusters = KMeans(count, n_init=1, random_state=seed % 2**32, copy_x=False)
    # Several threads would add up in an order of their own.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of too few distinct images, which the caller sees
        numbers = clusters.fit_predict(flat)
    centres = torch.from_numpy(clusters.cluster_centers_[sorted(set(numbers))])
    return centres.float().view(-1, *images.shape[1:])
