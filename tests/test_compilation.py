"""Compiled networks give what others give; without a compiler a run continues."""

import shutil

import pytest
import torch
from conftest import TinyData, quiet_trainer
from torch._dynamo.utils import counters

from dc_lightning import CondensationModule, Recipe, SyntheticSet
from dc_lightning.compilation import compile_networks, compiled, replay_graphs
from dc_lightning.evaluation.training import Job, train_and_test
from dc_lightning.networks import make_network

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _off_again():
    yield
    compile_networks(False)
    replay_graphs(False)


def condense(tmp_path, network):
    module = CondensationModule(network=network, ipc=2, inner_epochs=1)
    trainer = quiet_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, datamodule=TinyData(batch_real=6))
    return module.images.detach()


def evaluate(network, images):
    data = TinyData()
    data.setup()
    labels = torch.arange(3).repeat_interleave(2)
    synthetic = SyntheticSet(images, labels, data.mean, data.std, data.class_names)
    return train_and_test(synthetic, Job(network, Recipe(epochs=20), 0), data, CPU)


def test_graphs_are_for_a_gpu(tmp_path):
    images = condense(tmp_path, "MLP")
    accuracy, _ = evaluate("MLP", images)
    replay_graphs()
    assert torch.equal(condense(tmp_path, "MLP"), images)
    assert evaluate("MLP", images)[0] == accuracy


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_a_compiled_run_gives_the_same(tmp_path):
    images = condense(tmp_path, "MLP")
    accuracy, trained = evaluate("MLP", images)
    compile_networks()
    counters["stats"].clear()
    torch.testing.assert_close(condense(tmp_path, "MLP"), images, atol=2e-4, rtol=0)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    condense(tmp_path, "MLP")
    assert counters["stats"]["unique_graphs"] == graphs  # the networks that come next need no compiling
    found, again = evaluate("MLP", images)
    assert counters["stats"]["unique_graphs"] > graphs
    assert found == pytest.approx(accuracy, abs=0.05)
    for a, b in zip(trained.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    assert all("_orig_mod" not in name for name in again.state_dict())


def test_without_a_compiler_it_warns_once_and_continues(tmp_path, monkeypatch):
    plain = condense(tmp_path, "MLP")

    def broken(*args, **kwargs):
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nwas found in the following places")

    monkeypatch.setattr(torch, "compile", broken)
    compile_networks()
    with pytest.warns(UserWarning, match=r"cannot be compiled here \(no C\+\+ compiler\); continuing without"):
        images = condense(tmp_path, "MLP")
    assert torch.equal(images, plain)
    assert evaluate("MLP", images)[0] >= 0  # a second warning would be an error here


def test_what_the_network_itself_says_is_not_hidden(monkeypatch, tiny_data):
    monkeypatch.setattr(torch, "compile", lambda network, **kwargs: network)
    compile_networks()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compiled(make_network("MLP", tiny_data, 0))(torch.randn(2, 1, 5, 5))


def test_it_is_off_unless_it_is_switched_on(monkeypatch, tiny_data):
    monkeypatch.setattr(torch, "compile", None)
    network, images = make_network("MLP", tiny_data, 0), torch.randn(2, 1, 6, 6)
    assert torch.equal(compiled(network)(images), network(images))
