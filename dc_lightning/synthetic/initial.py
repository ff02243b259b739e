"""The synthetic images that a condensation starts from: noise, real images, or what stands for clusters of them."""

import warnings
from typing import TYPE_CHECKING, Literal, get_args

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from dc_lightning.errors import InputError
from dc_lightning.seeds import derive_generator, derive_seed

if TYPE_CHECKING:
    from dc_lightning.data.real import RealImages

Init = Literal["noise", "real", "k-means", "nearest"]
INITS: tuple[str, ...] = get_args(Init)


def initial_images(init: Init, count: int, real: "RealImages", seed: int) -> Tensor:
    """Synthetic images before the first matching step, class after class.

    Args:
        init: ``noise``, standard normal in normalised space, as in the paper's tables; ``real``, random real images of
            the class; ``k-means``, centres of ``count`` clusters of all its real images, by pixels, which reads every
            image once and holds a class at a time in memory, several times over, and at count 1 is the mean of the
            class; ``nearest``, the real images nearest to these centres.
        count: images per class, at least 1.
        real: the training images.
        seed: of the draws; on one machine the number of processes and threads changes nothing.

    Returns:
        float, ``(num_classes * count, C, H, W)``, normalised, on the CPU.

    Raises:
        InputError: if a class has fewer than count real images, or for the clusters distinct ones, and they are needed.
    """
    if init == "noise":
        shape = real.num_classes * count, *real.image_shape
        return torch.randn(shape, generator=derive_generator(seed, "init"))
    require_enough(init, count, real.counts(), real)
    if init == "real":
        draws = [real.draw(label, derive_generator(seed, "init", label), count) for label in range(real.num_classes)]
        return torch.cat(draws).cpu()
    made = []
    for label, rows in enumerate(real.rows):
        images = real.take(rows).cpu()
        centres = cluster_centres(images.flatten(1), count, derive_seed(seed, "init", label))
        made.append(centres.view(-1, *images.shape[1:]) if init == "k-means" else images[nearest(images, centres)])
    require_enough(init, count, [len(images) for images in made], real, " distinct")
    return torch.cat(made)


def require_enough(init: str, count: int, found: list[int], real: "RealImages", kind: str = "") -> None:
    """Raises `InputError` unless ``count`` images of every class were found to start from; names the others."""
    few = [f"{label} ({real.class_names[label]}: {number})" for label, number in enumerate(found) if number < count]
    if few:
        raise InputError(
            f"init='{init}' needs at least {count}{kind} training images of every class (ipc * factor^2), but there "
            f"are fewer of class {', '.join(few)}; take init='noise', or a smaller ipc or factor."
        )


def cluster_centres(points: Tensor, count: int, seed: int, start: Tensor | None = None) -> Tensor:
    """Centres of k-means clusters, up to scikit-learn's tolerance.

    Args:
        points: float, ``(n, d)``, such as the pixels of images of one class, or their features.
        count: clusters, from 1 to n.
        seed: of the first centres, by k-means++.
        start: first centres, ``(count, d)``, instead.

    Returns:
        float, ``(count, d)``, on the CPU; fewer, where there are not as many distinct points.
    """
    from sklearn.cluster import KMeans  # a second, when it is needed
    from sklearn.exceptions import ConvergenceWarning

    clusters = KMeans(
        count, init="k-means++" if start is None else start.numpy(), n_init=1, random_state=seed % 2**32, copy_x=False
    )
    # Several threads would add up in an order of their own.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of too few distinct points, which the caller sees
        numbers = clusters.fit_predict(points.cpu().double().numpy())
    return torch.from_numpy(clusters.cluster_centers_[sorted(set(numbers))]).to(points.dtype)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Row of the point, ``(n, ...)``, nearest to each centre, ``(k, d)``, by Euclidean distance: int64, ``(k,)``."""
    return torch.cdist(centres.to(points), points.flatten(1)).argmin(dim=1)
