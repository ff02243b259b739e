import pytest
import torch

from dc_lightning.matching.distances import DISTANCES, layerwise_cosine, squared_error
from dc_lightning.parts import make


def gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((4, 2, 3, 3), (4,), (4, 5, 5), (3, 8), (3,))]


@pytest.mark.parametrize("name", DISTANCES)
def test_zero_against_itself(name):
    assert abs(float(DISTANCES[name](gradients(0), gradients(0)))) < 1e-4


@pytest.mark.parametrize("name", ["ours", "cos"])
@pytest.mark.parametrize("factor", [0.1, 30.0])
def test_cosines_do_not_see_the_length(name, factor):
    function, first, second = DISTANCES[name], gradients(0), gradients(1)
    torch.testing.assert_close(
        function(first, [factor * g for g in second]), function(first, second), rtol=1e-4, atol=0
    )


def test_ours_is_a_sum_over_rows_of_all_but_vectors():
    first, second = gradients(0), gradients(1)
    expected = 0.0
    for a, b in zip(first, second, strict=True):
        if a.dim() > 1:
            for row_a, row_b in zip(a, b, strict=True):
                expected += 1 - torch.nn.functional.cosine_similarity(row_a.flatten(), row_b.flatten(), dim=0)
    torch.testing.assert_close(layerwise_cosine(first, second), expected, rtol=1e-5, atol=1e-5)
    changed = [g if g.dim() > 1 else g + 7 for g in second]
    assert torch.equal(layerwise_cosine(first, changed), layerwise_cosine(first, second))


def test_mse_is_the_squared_norm():
    first, second = gradients(0), gradients(1)
    flat = torch.cat([(a - b).flatten() for a, b in zip(first, second, strict=True)])
    torch.testing.assert_close(squared_error(first, second), flat.norm() ** 2)


def test_a_network_of_vectors_only_is_refused():
    with pytest.raises(ValueError, match="two or more dimensions"):
        layerwise_cosine([torch.ones(3)], [torch.ones(3)])


def test_a_distance_of_the_users():
    found = make("distance", DISTANCES, {"class_path": "conftest.ScaledError", "init_args": {"factor": 2.0}})
    torch.testing.assert_close(found(gradients(0), gradients(1)), 2 * squared_error(gradients(0), gradients(1)))
