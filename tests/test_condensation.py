import pytest
import pytorch_lightning as pl
import torch
from conftest import GOLDEN, GoldenData, TinyData, assert_golden, assert_golden_summary, fill_golden, normal
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits
from torch.utils._python_dispatch import TorchDispatchMode

from dc_lightning import Checkpoints, CondensationModule, DistributionMatching, FRePo, InputError
from dc_lightning.data import TorchDataset
from dc_lightning.methods.inner_loop import default_loops
from dc_lightning.networks import NETWORKS
from dc_lightning.synthetic import initial


def trainer(tmp_path, epochs=2, **kwargs):
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return pl.Trainer(
        max_epochs=epochs, default_root_dir=tmp_path, enable_model_summary=False, **{**defaults, **kwargs}
    )


def condense(tmp_path, epochs=2, data=None, **kwargs):
    settings = {"network": "MLP", "ipc": 2, "inner_epochs": 2, **kwargs}
    module = CondensationModule(**settings)
    trainer(tmp_path, epochs).fit(module, datamodule=data or TinyData())
    return module


GOLDEN_NAME, networks_made = [""], []


def golden_network(channels, num_classes, image_size):
    networks_made.append(fill_golden(NETWORKS[GOLDEN_NAME[0]](channels, 10, image_size)))
    return networks_made[-1]


class StopsOnce(pl.Callback):
    """Asks for the end within an outer iteration, once."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or (trainer.current_epoch, batch_idx) == (1, 0)


def test_a_callback_that_ends_a_run_ends_it_after_the_outer_iteration(tmp_path):
    stopped = trainer(tmp_path, epochs=5, callbacks=[StopsOnce(), Checkpoints()], enable_checkpointing=True)
    stopped.fit(CondensationModule(network="MLP", ipc=2, outer_steps=3, inner_epochs=1), datamodule=TinyData())
    assert (stopped.current_epoch, stopped.global_step) == (2, 6)


@pytest.mark.parametrize("entry", GOLDEN["trajectory"], ids=lambda entry: entry["model"])
def test_an_outer_iteration_is_that_of_the_authors_code(entry, tmp_path, monkeypatch):
    monkeypatch.setattr("dc_lightning.methods.base.check_network", lambda *_: None)  # ten logits for three classes
    GOLDEN_NAME[0], channels, size = entry["model"], entry["channels"], entry["size"]
    losses, data = [0.0], GoldenData(entry)
    data.setup()

    class Steps(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            data.step += 1  # and from the mean of the steps so far to their sum
            losses.append(3 * data.step * float(module.matching_loss))

    module = CondensationModule(network="test_condensation.golden_network", ipc=2, outer_steps=3, inner_epochs=2)
    module.images = torch.nn.Parameter(normal(2000, 6, channels, size, size))
    module.register_buffer("labels", torch.arange(3).repeat_interleave(2), persistent=False)
    trainer(tmp_path, 1, callbacks=[Steps()], precision="64-true").fit(module, datamodule=data)
    assert_golden(torch.tensor(losses, dtype=torch.float64).diff(), entry["loss_per_step"])
    assert_golden_summary(module.images, entry["images"])
    weights = list(networks_made[-1].parameters())
    assert_golden_summary(weights[0], entry["first_weight"])
    assert_golden_summary(weights[-2], entry["last_weight"])


@pytest.mark.parametrize(
    "network",
    [
        "MLP",
        "ConvNetD1",
        {
            "class_path": "dc_lightning.networks.ConvNet",
            "init_args": {"depth": 1, "width": 8, "normalization": "batch"},
        },
    ],
)
def test_one_seed_gives_the_same_bits_and_another_others(network, tmp_path):
    first, again, other = (condense(tmp_path, network=network, seed=seed).images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_generator_does_not_matter(tmp_path):
    torch.manual_seed(1)
    first = condense(tmp_path).images
    torch.manual_seed(2)
    assert torch.equal(first, condense(tmp_path).images)


def test_condensing_brings_the_gradients_together(tmp_path):
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            losses.append(float(module.matching_loss))

    module = CondensationModule(network="MLP", lr_images=0.5)
    trainer(tmp_path, 60, callbacks=[Losses()]).fit(module, datamodule=TinyData())
    assert sum(losses[-10:]) / 10 < 0.8 * losses[0]


def test_networks_train_on_real_images_where_asked(tmp_path):
    batches = []

    class Watched(CondensationModule):
        def network_batches(self, step):
            for images, labels, seed in super().network_batches(step):
                batches.append((images.clone(), labels.clone()))
                yield images, labels, seed

    data = TinyData(batch_real=4)
    trainer(tmp_path, 2).fit(Watched(network="MLP", ipc=3, network_images=6), datamodule=data)
    assert [len(images) for images, _ in batches] == [4, 2] * 4  # two outer iterations of three steps
    assert len({tuple(labels.tolist()) for _, labels in batches}) > 2
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            assert any(torch.equal(image, real) for real in data.real.take(data.real.rows[label]))


@pytest.mark.parametrize(("inner_batches", "sizes"), [(None, [5, 1] * 2), (3, [5, 1, 5]), (9, [5, 1] * 2)])
def test_training_of_a_network_ends_after_so_many_batches(tmp_path, inner_batches, sizes):
    seen = []

    class Watched(CondensationModule):
        def train_network(self, network, step):
            handle = network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
            super().train_network(network, step)
            handle.remove()

    settings = {"outer_steps": 2, "inner_epochs": 2, "batch_synthetic": 5, "inner_batches": inner_batches}
    trainer(tmp_path, 1).fit(Watched(network="MLP", ipc=2, **settings), datamodule=TinyData())
    assert seen == sizes


def test_real_init_takes_images_of_the_class(tmp_path):
    data = TinyData()
    module = condense(tmp_path, epochs=1, data=data, init="real", lr_images=0.0)
    for image, label in zip(module.images.detach(), module.labels, strict=True):
        rows = data.real.rows[int(label)]
        assert (data.real.take(rows) - image).abs().flatten(1).amax(1).min() == 0
    assert len(module.images.detach().unique(dim=0)) == len(module.images)


def test_k_means_init_takes_cluster_centres_of_the_class(tmp_path):
    data = TinyData()
    module = condense(tmp_path, epochs=1, data=data, init="k-means", lr_images=0.0, ipc=3)
    for label, rows in enumerate(data.real.rows):
        real, centres = data.real.take(rows).flatten(1), module.images.detach()[module.labels == label].flatten(1)
        nearest = torch.cdist(real, centres).argmin(1)
        for number, centre in enumerate(centres):  # each the mean of the real images nearest to it
            assert torch.allclose(real[nearest == number].mean(0), centre, atol=1e-5)


def test_one_cluster_is_the_mean_of_the_class(tmp_path):
    data = TinyData()
    module = condense(tmp_path, epochs=1, data=data, init="k-means", lr_images=0.0, ipc=1)
    means = torch.stack([data.real.take(rows).mean(0) for rows in data.real.rows])
    assert torch.allclose(module.images.detach(), means, atol=1e-5)


def test_cluster_centres_come_from_the_seed_of_the_run(tmp_path):
    data = TinyData(per_class=60)
    first, again, other = (
        condense(tmp_path, epochs=1, data=data, init="k-means", lr_images=0.0, ipc=5, seed=seed).images.detach()
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_clusters_are_computed_by_one_thread(monkeypatch):
    threads = []

    class Watched(KMeans):
        def fit(self, *args, **kwargs):
            threads.extend(pool["num_threads"] for pool in threadpool_info())
            return super().fit(*args, **kwargs)

    monkeypatch.setattr("sklearn.cluster.KMeans", Watched)
    with threadpool_limits(2):
        before = [pool["num_threads"] for pool in threadpool_info()]
        initial.cluster_centres(torch.randn(9, 4), 3, seed=0)
        assert [pool["num_threads"] for pool in threadpool_info()] == before
    assert set(threads) == {1}
    assert 2 in before


def test_cluster_centres_of_images_on_disk_are_those_of_images_in_memory():
    images = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    pairs = [(image, number % 2) for number, image in enumerate(images)]
    found = []
    for in_memory in (True, False):
        data = TorchDataset(lambda: pairs, lambda: pairs, in_memory=in_memory)
        data.setup()
        found.append(initial.initial_images("k-means", 3, data.real, seed=0))
    assert found[0].shape == (6, 1, 6, 6)
    assert torch.equal(*found)


def test_too_few_distinct_images_for_k_means_name_the_class(tmp_path):
    images = torch.rand(12, 1, 6, 6)
    images[1::2] = images[1]  # class 1: one image, six times
    pairs = [(image, number % 2) for number, image in enumerate(images)]
    with pytest.raises(InputError, match=r"at least 2 distinct training images .* of class 1 \(1: 1\)"):
        condense(tmp_path, data=TorchDataset(lambda: pairs, lambda: pairs), init="k-means", ipc=2)


def test_only_the_images_are_state(tmp_path):
    module = condense(tmp_path)
    assert list(module.state_dict()) == ["images"]
    assert module.images.shape == (6, 1, 6, 6)


def test_loops_of_the_paper():
    table = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    assert {ipc: default_loops(ipc) for ipc in table} == table


def test_loops_between_the_rows_of_the_paper():
    assert default_loops(2) == (2, 50)
    assert default_loops(15) == (15, 38)
    assert default_loops(45) == (45, 13)
    assert default_loops(200) == (200, 10)
    epochs = [default_loops(ipc)[1] for ipc in range(10, 60)]
    assert epochs == sorted(epochs, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ipc": 0}, "ipc must be at least 1"),
        ({"ipc": -2}, "got -2"),
        ({"outer_steps": 0}, "outer_steps must be at least 1"),
        ({"lr_images": float("nan")}, "lr_images must be at least 0"),
        ({"init": "zeros"}, "Unknown model.init 'zeros': expected one of noise, real, k-means, nearest"),
        ({"lr_images_cooldown": 1.5}, "from 0 to 1, got 1.5"),
        ({"lr_images_cooldown": float("nan")}, "from 0 to 1, got nan"),
        ({"distance": "l2"}, "ours, mse, cos"),
        ({"real_chunk_size": 0}, "real_chunk_size"),
        ({"network_images": -1}, "network_images must be at least 0"),
        ({"inner_batches": 0}, "inner_batches must be at least 1"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        CondensationModule(**arguments)


def test_matching_steps_are_not_left_out(tmp_path):
    with pytest.raises(InputError, match="2 matching steps, but the Trainer would run 1"):
        trainer(tmp_path, limit_train_batches=1).fit(CondensationModule(network="MLP", ipc=2), datamodule=TinyData())


@pytest.mark.parametrize(
    ("cooldown", "expected"),
    [(0.0, [0.4] * 8), (0.5, [0.4] * 5 + [0.3, 0.2, 0.1]), (1.0, [0.4 * left / 8 for left in range(8, 0, -1)])],
)
def test_the_image_learning_rate_cools_down_at_the_end(cooldown, expected, tmp_path, monkeypatch):
    rates, step = [], torch.optim.SGD.step

    def noting(self, *args, **kwargs):
        if self.param_groups[0]["momentum"]:  # the images', not the networks'
            rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    condense(tmp_path, epochs=4, lr_images=0.4, lr_images_cooldown=cooldown)
    assert rates == pytest.approx(expected)


def test_a_set_says_where_its_run_was_resumed_at_another_pace(tmp_path):
    said, last = [], None
    for rate, cooldown, precision, end in [
        (0.4, 0.0, "bf16-mixed", 2),
        (0.4, 0.0, "bf16-mixed", 3),  # more iterations alone are none
        (0.1, 0.5, "32-true", 4),
        (0.1, 0.5, "32-true", 4),
        (0.1, 0.5, "32-true", 6),
    ]:
        module = CondensationModule(network="MLP", ipc=2, lr_images=rate, lr_images_cooldown=cooldown)
        running = trainer(tmp_path, end, precision=precision)
        running.fit(module, datamodule=TinyData(), ckpt_path=last)
        running.save_checkpoint(last := tmp_path / "last.ckpt")
        said.append(module.synthetic_set(end).source.get("resumed"))
    first = "from iteration 3, before with lr_images 0.4, lr_images_cooldown 0.0, precision bf16-mixed"
    assert said == [None, None, first, first, f"{first}; from iteration 4, before with max_epochs 4"]
    assert CondensationModule.load_from_checkpoint(last).resumed == said[-1]


@pytest.mark.parametrize("forgotten", [(), ("pace", "resumed")], ids=str)
def test_a_finished_run_that_is_evaluated_again_keeps_its_pace(forgotten, tmp_path):
    condensed, path = {"network": "MLP", "ipc": 2}, tmp_path / "last.ckpt"
    running = trainer(tmp_path, precision="bf16-mixed")
    running.fit(CondensationModule(**condensed), datamodule=TinyData())
    running.save_checkpoint(path)
    content = torch.load(path, weights_only=False)
    torch.save({key: value for key, value in content.items() if key not in forgotten}, path)
    again = CondensationModule(**condensed)
    trainer(tmp_path).fit(again, datamodule=TinyData(), ckpt_path=path)
    source = again.synthetic_set(2).source
    assert (source["precision"], "resumed" in source) == ("32-true" if forgotten else "bf16-mixed", False)


def test_a_run_that_was_resumed_before_its_first_step_had_no_other_pace(tmp_path):
    class Start(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    trainer(tmp_path, callbacks=[Start()]).fit(CondensationModule(network="MLP", ipc=2), datamodule=TinyData())
    module = CondensationModule(network="MLP", ipc=2, lr_images=0.01)
    trainer(tmp_path).fit(module, datamodule=TinyData(), ckpt_path=tmp_path / "last.ckpt")
    assert "resumed" not in module.synthetic_set(2).source


def test_lightnings_callbacks_can_watch_the_matching_loss(tmp_path):
    seen = []

    class Watch(pl.callbacks.EarlyStopping):
        def _run_early_stopping_check(self, trainer):
            seen.append(float(trainer.callback_metrics["matching_loss"]))
            super()._run_early_stopping_check(trainer)

    module = CondensationModule(network="MLP", ipc=2)
    watching = trainer(tmp_path, epochs=9, callbacks=[Watch("matching_loss", stopping_threshold=1e9)])
    watching.fit(module, datamodule=TinyData())
    assert watching.current_epoch == 1
    assert seen == [float(watching.callback_metrics["matching_loss"])]


def test_a_precision_that_would_lose_updates_is_refused(tmp_path):
    module = CondensationModule(network="MLP", ipc=2)
    with pytest.raises(InputError, match="must be one of 32-true, 64-true, bf16-mixed, got bf16-true"):
        trainer(tmp_path, precision="bf16-true").fit(module, datamodule=TinyData())


def test_a_set_is_of_float32_whatever_the_precision(tmp_path):
    module = CondensationModule(network="MLP", ipc=2, inner_epochs=1)
    trainer(tmp_path, precision="64-true").fit(module, datamodule=TinyData())
    assert module.images.dtype != torch.float32
    assert module.synthetic_set(2).images.dtype == torch.float32


def test_a_cooldown_needs_an_end(tmp_path):
    module = CondensationModule(network="MLP", ipc=2, lr_images_cooldown=0.5)
    with pytest.raises(InputError, match=r"lr_images_cooldown needs to know .* give trainer.max_epochs"):
        trainer(tmp_path, epochs=-1, max_steps=3).fit(module, datamodule=TinyData())


@pytest.mark.parametrize("init", ["real", "k-means", "nearest"])
def test_real_images_to_start_from_that_are_too_few_name_the_classes(tmp_path, init):
    with pytest.raises(InputError, match=rf"init='{init}' needs at least 20 training .* of class 0 \(class 0: 12\)"):
        condense(tmp_path, ipc=20, init=init)


def test_a_network_that_cannot_take_the_images_is_found_before_the_run(tmp_path):
    with pytest.raises(InputError, match="VGG11 cannot take images of 1x6x6"):
        condense(tmp_path, network="VGG11")


class Operations(TorchDispatchMode):
    """Counts operations, and those that would make the host wait for a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")
    METHODS = ("cpu", "numpy", "tolist", "item", "to")

    def __init__(self):
        super().__init__()
        self.count, self.waiting = 0, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        self.count += 1
        by_mask = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.WAITING or by_mask:
            self.waiting.append(name)
        return operation(*args, **(kwargs or {}))

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for name in self.METHODS:  # on a CPU some of them are no operation
            self.patch.setattr(torch.Tensor, name, self._noting(name, getattr(torch.Tensor, name)))
        return super().__enter__()

    def _noting(self, name, original):
        def noting(tensor, *args, **kwargs):
            to_a_device = any(isinstance(argument, torch.device | torch.Tensor) for argument in args)
            if name != "to" or (to_a_device and not (True in args or kwargs.get("non_blocking"))):
                self.waiting.append(name)
            return original(tensor, *args, **kwargs)

        return noting

    def __exit__(self, *details):
        self.patch.undo()
        return super().__exit__(*details)


@pytest.mark.parametrize("augmentation", [None, "siamese"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (CondensationModule, {"inner_epochs": 1}),
        (CondensationModule, {"network_images": 6}),
        (DistributionMatching, {}),
        (FRePo, {"outer_steps": 2, "inner_epochs": 1}),
        (FRePo, {"outer_steps": 2, "inner_epochs": 1, "last_layer_steps": 3}),
    ],
    ids=["on the set", "on real images", "DM", "FRePo", "FRePo, last layer by SGD"],
)
@pytest.mark.parametrize("network", ["MLP", "ConvNetD1", "ConvNetBN"])
def test_a_step_never_makes_the_host_wait(network, method, settings, augmentation, tmp_path):
    counted = []

    class Counted(method):
        def training_step(self, batch, batch_idx):
            with Operations() as operations:
                super().training_step(batch, batch_idx)
            counted.append(operations)

    module = Counted(network=network, ipc=2, augmentation=augmentation, **settings)
    trainer(tmp_path, 4 // module.outer_steps).fit(module, datamodule=TinyData(size=(8, 8)))
    assert len(counted) == 4
    assert all(operations.count > 50 for operations in counted)
    assert [operations.waiting for operations in counted] == [[]] * 4


def test_operations_that_wait_are_seen():
    with Operations() as operations:
        float(torch.ones(2).sum())
        torch.ones(2).nonzero()
        torch.ones(2)[torch.ones(2) > 0]
        torch.ones(2).cpu()
        torch.ones(2).tolist()
        torch.nn.Linear(2, 2, bias=False).to(torch.device("cpu"))
        torch.ones(2).to(torch.device("cpu"), non_blocking=True)
    assert operations.waiting == ["_local_scalar_dense", "nonzero", "index", "cpu", "tolist", "to"]


def test_a_nan_loss_stops_the_run_and_names_the_iteration(tmp_path):
    class Poison(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                module.images.data[0] = float("inf")

    module = CondensationModule(network="MLP")
    with pytest.raises(InputError, match=r"outer iteration 3 .*last good checkpoint"):
        trainer(tmp_path, 5, callbacks=[Poison()]).fit(module, datamodule=TinyData())
