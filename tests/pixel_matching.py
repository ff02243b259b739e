"""A method from outside: the mean image of every class is matched; networks are trained as anybody would."""

import torch

from dc_lightning import Condenser


class PixelMatching(Condenser):
    """Moves the mean of the synthetic images of a class to that of its real ones, seen through a network's logits.

    Args:
        weight: of the pixels, beside the logits.
        steps: matching steps an outer iteration, between which the network takes a step on the synthetic images.
    """

    def __init__(self, weight: float = 0.5, steps: int = 2, lr_images: float = 2.0, **kwargs):
        super().__init__(lr_images=lr_images, **kwargs)
        self.weight, self.outer_steps = weight, steps

    def real_batch(self, label, step):
        """Fewer real images than other methods take."""
        return super().real_batch(label, step)[:5]

    def loss(self, network, real, synthetic, label):
        pixels = (real.mean(dim=0) - synthetic.mean(dim=0)).square().mean()
        with torch.no_grad():
            target = network(real).mean(dim=0)
        return self.weight * pixels + (network(synthetic).mean(dim=0) - target).square().mean()

    def train_network(self, network, step):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(self.images.detach()), self.labels).backward()
        optimizer.step()
