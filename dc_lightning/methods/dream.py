"""DREAM (Liu et al., ICCV 2023; ``condense.py`` of its code): IDC whose real batches stand for clusters of a class."""

from typing import Any

import torch
from torch import Tensor, nn

from dc_lightning.errors import require_at_least
from dc_lightning.matching.embeddings import embed_chunks
from dc_lightning.methods.idc import IDC
from dc_lightning.networks import make_network
from dc_lightning.seeds import derive_seed, seeded
from dc_lightning.synthetic.initial import Init, cluster_centres, nearest, require_enough


class DREAM(IDC):
    """Matches real images that are nearest to the centres of clusters of their class, by the features of the network.

    Every ``interval`` rounds the images of each class are clustered, as many clusters as ``batch_real``, 128 in the
    paper; the rounds after share the choice. As in the authors' code the images are not normalised there; they pass a
    chunk at a time. Its k-means starts from random images, ours from k-means++, on the CPU, which takes about two
    minutes a choice with ten classes of 6,000 images.

    A class of fewer images than clusters gives all it has, which is said.

    Args:
        interval: rounds that share a choice.
        init: see `Condenser`; ``nearest`` clusters by the features of the first, untrained network.
        batch_network: see `IDC`.
        **kwargs: see `IDC`.
    """

    name = "DREAM"  # type: ignore[assignment]

    def __init__(self, interval: int = 10, init: Init = "nearest", batch_network: int = 128, **kwargs: Any) -> None:
        super().__init__(init=init, batch_network=batch_network, **kwargs)
        require_at_least(interval=(interval, 1))
        self.interval = interval
        self._chosen: Tensor | None = None  # (classes, batch_real): rows of the real images, -1 where there are fewer

    def on_fit_start(self) -> None:
        """Says which classes have fewer images than clusters, whether or not that number was asked for."""
        super().on_fit_start()
        self.data.warn_of_small_classes()

    def features(self, network: nn.Module, label: int) -> Tensor:
        """Features of all real images of a class, not normalised, before the last layer: float, ``(n, d)``."""
        chunks = (self.real.take(rows).to(next(network.parameters())) for rows in self.real.rows[label].split(256))
        return embed_chunks(network, map(self.data.denormalize, chunks)).float()

    def representatives(self, network: nn.Module, label: int, count: int, seed: int) -> Tensor:
        """Rows of the real images nearest to the centres of ``count`` clusters of a class, fewer where it has fewer."""
        features, rows = self.features(network, label), self.real.rows[label]
        return rows[nearest(features, cluster_centres(features, min(count, len(rows)), seed)).cpu()]

    def starting_images(self, count: int) -> Tensor:
        """See `Condenser`."""
        if self.init != "nearest":
            return super().starting_images(count)
        network = make_network(self.network_spec, self.data, derive_seed(self.seed, "network", 0))
        labels = range(self.data.num_classes)
        with seeded(derive_seed(self.seed, "features")):
            rows = [self.representatives(network, n, count, derive_seed(self.seed, "init", n)) for n in labels]
        require_enough(self.init, count, [len(chosen) for chosen in rows], self.real, " distinct")
        return torch.cat([self.real.take(chosen) for chosen in rows]).cpu()

    def prepare_network(self, network: nn.Module, step: int) -> None:
        """See `IDC`; chooses the real images anew when that is due, each process for its classes."""
        super().prepare_network(network, step)
        if step % self.interval and self._chosen is not None:
            return
        classes, world = self.data.num_classes, self.trainer.world_size
        chosen = torch.zeros(classes, self.real.batch_real, dtype=torch.int64, device=self.device)
        for label in range(self.global_rank, classes, world):
            seed = self.derived_seed("clusters", step, label)
            with self.seeded("features", step, label):
                rows = self.representatives(network, label, self.real.batch_real, seed)
            chosen[label] = -1
            chosen[label, : len(rows)] = rows.to(self.device)
        self._chosen = self.trainer.strategy.reduce(chosen, reduce_op="sum").cpu()

    def real_batch(self, label: int, step: int) -> Tensor:
        """The chosen images of a class."""
        assert self._chosen is not None
        rows = self._chosen[label]
        return self.real.take(rows[rows >= 0]).to(self.images.dtype)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Condenser`; with the choice."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["chosen"] = self._chosen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `IDC`."""
        super().on_load_checkpoint(checkpoint)
        self._chosen = checkpoint["chosen"]
