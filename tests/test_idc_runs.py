"""IDC and DREAM as runs: resume to the same bits, several processes, files, what is drawn, bad input."""

import itertools
import json
import signal
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from children import RUN, run
from conftest import TinyData, quiet_trainer, some_slow
from curves import read_curves
from pytorch_lightning.plugins.precision import MixedPrecision
from scipy.ndimage import affine_transform
from test_resume import assert_same, outcome

import dc_lightning
from dc_lightning import DREAM, IDC, CondensationModule, FRePo, InputError, load_synthetic
from dc_lightning.augmentation import DiffAugment
from dc_lightning.augmentation.cutmix import CutMix
from dc_lightning.cli import main

SMALL = '{"class_path": "dc_lightning.networks.ConvNet", "init_args": {"depth": 1, "width": 8}}'
NETWORK = {"class_path": "dc_lightning.networks.ConvNet", "init_args": {"depth": 1, "width": 8}}
TINY = (
    "--data conftest.TinyData --data.batch_real 5 --model.ipc 2 --model.outer_steps 5 --model.network_images 30 "
    "--model.batch_network 8 --model.lr_images 0.003 --trainer.max_epochs 3 --trainer.accelerator cpu "
    "--evaluation.num_networks 1 --evaluation.every_n 2 --evaluation.recipe.epochs_augmented 3 "
    "--checkpoint.every_n 2 --checkpoint.last_every_seconds 0 --model.network"
).split()
ARGS = {
    "IDC": ["fit", "--config", "configs/evaluation/idc.yaml", "--model", "dc_lightning.IDC", *TINY, SMALL],
    "DREAM": [
        *["fit", "--config", "configs/evaluation/idc.yaml", "--model", "dc_lightning.DREAM", *TINY, SMALL],
        *["--model.interval", "3"],
    ],
}


@pytest.fixture(scope="module", params=list(ARGS))
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    assert run(ARGS[request.param], folder) == 0
    return ARGS[request.param], folder


@pytest.mark.parametrize("count", some_slow([3, 9], [9]))
def test_resume_after_a_kill_gives_the_same_bits(count, whole, tmp_path):
    """Within an outer iteration: network, its momentum, the place in the passes over the real images, the choice."""
    args, folder = whole
    assert run(args, tmp_path, "after a checkpoint write", count) == -signal.SIGKILL
    checkpoint = torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["network_optimizer"]["state"]
    assert run([*args, "--ckpt_path", "last"], tmp_path) == 0
    assert_same(outcome(tmp_path), outcome(folder))


@pytest.mark.distributed
@pytest.mark.parametrize("size", ["2", "3"])
def test_several_processes_give_the_same(size, whole, tmp_path):
    args, folder = whole
    assert run([*args, "--trainer.strategy", "ddp_fork", "--trainer.devices", size], tmp_path) == 0
    found, expected = (load_synthetic(place / RUN / "synthetic.pt")[0] for place in (tmp_path, folder))
    assert torch.equal(found.images, expected.images)


def test_files_say_what_is_stored_and_what_is_used(whole):
    _, folder = whole
    (synthetic,) = load_synthetic(folder / RUN / "synthetic.pt")
    assert (synthetic.space, synthetic.factor, len(synthetic.images), len(synthetic)) == ("pixels", 2, 6, 24)
    results = json.loads((folder / RUN / "results.json").read_text())
    ours, random = results["columns"]
    assert (ours["stored_images"], ours["training_images"]) == (6, 24)
    assert (random["stored_images"], random["training_images"]) == (6, 6)
    assert ours["scores"][0]["recipe"] == "IDC"
    assert ours["scores"][0]["augmentation"] == ["diffaugment(color_crop_flip_scale_rotate)", "cutmix(0.5)"]
    assert results["source"]["distance"] == "l1"
    assert results["source"]["network_images"] == 30
    assert (folder / RUN / "synthetic_decoded.png").is_file()
    _, events = read_curves(folder / RUN)
    for title in ("synthetic images", "decoded images"):
        assert [image.step for image in events.Images(title)] == [0, 2, 3]
    assert len(list((folder / RUN / "images").glob("*_decoded.png"))) == 3


def test_a_set_in_one_images_becomes_an_exported_folder_and_back(whole, tmp_path):
    _, folder = whole
    (synthetic,) = load_synthetic(folder / RUN / "synthetic.pt")
    synthetic.export(tmp_path / "folder")
    (again,) = load_synthetic(tmp_path / "folder")
    images, labels = again.decoded()
    expected, expected_labels = synthetic.decoded()
    assert labels.tolist() == expected_labels.tolist()
    outside = float((synthetic.images - synthetic.images.clamp(0, 1)).abs().max())  # which 8 bits cannot hold
    assert float((images - expected).abs().max()) <= (0.51 / 255 + outside) / min(synthetic.std)


def condense(tmp_path, method, epochs=1, data=None):
    trainer = quiet_trainer(tmp_path, max_epochs=epochs)
    trainer.fit(method, datamodule=data or TinyData())
    return method


def test_the_distance_follows_the_channels(tmp_path):
    grey = condense(tmp_path, IDC(network=NETWORK, outer_steps=1))
    color = condense(tmp_path, IDC(network=NETWORK, outer_steps=1), data=TinyData(channels=3))
    assert (grey.distance, color.distance) == ("l1", "mse")
    assert grey.lr_images == pytest.approx(1e-4 / 10 * (6 / 32) ** 2)
    assert color.lr_images == pytest.approx(5e-3 / 10 * (6 / 32) ** 2)


def test_real_images_come_in_passes_over_the_class(tmp_path):
    """12 images of a class in batches of 5: two a pass, what is left is dropped, the next pass is shuffled anew."""
    drawn, networks = [], []

    class Noted(IDC):
        def real_batch(self, label, step):
            found = super().real_batch(label, step)
            if label == 1:
                drawn.append(found)
            return found

        def network_batch(self, step, number):
            found = super().network_batch(step, number)
            networks.append(found)
            return found

    method = Noted(network=NETWORK, outer_steps=3, network_images=20, batch_network=8)
    condense(tmp_path, method, 2, TinyData(batch_real=5))
    keys = [[tuple(image.flatten().tolist()) for image in batch] for batch in drawn]
    assert [len(batch) for batch in keys] == [5] * 6
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        assert len({*first, *second}) == 10
    assert len({tuple(batch) for batch in keys}) == 6
    sizes = [len(labels) for _, labels in networks]
    assert sizes == [8, 8, 8, 8, 4, 8, 8, 8, 8, 4, 8, 8]  # 36 images a pass, three batches a round, four rounds
    first_pass = torch.cat([images for images, _ in networks[:5]])
    assert len(first_pass.flatten(1).unique(dim=0)) == 36


def test_more_training_images_than_fit_are_chosen_at_random(tmp_path):
    seen = []

    class Noted(IDC):
        def loss(self, network, real, synthetic, label):
            seen.append(synthetic.detach().clone())
            return super().loss(network, real, synthetic, label)

    condense(tmp_path, Noted(network=NETWORK, outer_steps=2, ipc=2, batch_synthetic=5, augmentation=None))
    assert {len(images) for images in seen} == {5}
    assert not torch.equal(seen[0], seen[3])
    bounded = condense(tmp_path, IDC(network=NETWORK, outer_steps=1, ipc=2, batch_synthetic=6, formation="bound"))
    assert bounded.synthetic_batch(bounded.images_of(0), 0, 0).shape[0] == 5  # four of the first, one of the second
    assert bounded.synthetic_set(1).formation == "single"
    multi = condense(tmp_path, IDC(network=NETWORK, outer_steps=1, ipc=2, formation="multi"))
    assert len(multi.synthetic_set(1)) == 3 * 2 * (1 + 4)


def test_images_are_clamped_when_an_outer_iteration_starts(tmp_path):
    seen = []

    class Noted(IDC):
        def real_batch(self, label, step):
            if step == 0 and label == 0:
                seen.append(self.images.detach().clone())
            return super().real_batch(label, step)

    method = condense(tmp_path, Noted(network=NETWORK, outer_steps=2, lr_images=1.0), 3)
    assert all(float(images.min()) >= 0 and float(images.max()) <= 1 for images in seen)
    found = method.images.detach()
    assert float(found.max()) > 1 or float(found.min()) < 0


def test_dream_chooses_representatives_every_interval(tmp_path):
    chosen = []

    class Noted(DREAM):
        def real_batch(self, label, step):
            found = super().real_batch(label, step)
            if label == 2:
                chosen.append((found, self.real.rows[label]))
            return found

    method = Noted(network=NETWORK, outer_steps=4, interval=2, network_images=30)
    condense(tmp_path, method, 1, TinyData(batch_real=5))
    images = [tuple(batch.flatten().tolist()) for batch, _ in chosen]
    assert images[0] == images[1] != images[2] == images[3]
    real = method.real.take(method.real.rows[2])
    assert all(any(torch.equal(image, other) for other in real) for image in chosen[0][0])


@pytest.mark.parametrize("clusters", [128, 256])  # asked for; the default
def test_a_class_smaller_than_its_clusters_gives_all_it_has(clusters, tmp_path, caplog):
    sizes = []

    class Noted(DREAM):
        def loss(self, network, real, synthetic, label):
            sizes.append(len(real))
            return super().loss(network, real, synthetic, label)

    condense(tmp_path, Noted(network=NETWORK, outer_steps=1, init="real"), 1, TinyData(batch_real=clusters))
    assert sizes == [12, 12, 12]
    said = f"3 of 3 classes have fewer than batch_real={clusters} training images (the smallest 12)"
    assert caplog.text.count(said) == caplog.text.count("fewer") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 0}, "factor must be at least 1"),
        ({"factor": 7}, r"factor must be in 1\.\.6 for images of 6x6, got 7"),
        ({"factor": 3, "ipc": 2}, r"at least 18 training images of every class .* 0 \(class 0: 12\)"),
        ({"formation": "bound", "ipc": 3, "batch_synthetic": 2}, "needs a batch_synthetic of at least ipc=3, .* got 2"),
        ({"formation": "double"}, "Unknown model.formation 'double': expected one of single, multi, bound"),
        ({"cutmix": 1.5}, "model.cutmix is the probability"),
        ({"network": "MLP"}, "IDC compares the gradients of convolutions, and the network MLP has none"),
        ({"network": {**NETWORK, "init_args": {**NETWORK["init_args"], "normalization": "batch"}}}, "BatchNorm cannot"),
        ({"distance": "cos"}, "no rate of the authors' for the distance cos; give lr_images"),
        ({"distance": {"class_path": "conftest.ScaledError"}}, "no rate .* distance conftest.ScaledError; give lr_im"),
        ({"distance": "l3"}, "Unknown distance 'l3'"),
        ({"outer_steps": 0}, "outer_steps must be at least 1"),
        ({"batch_network": 0}, "batch_network must be at least 1"),
    ],
    ids=str,
)
def test_bad_settings_are_named(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        condense(tmp_path, IDC(**{"network": NETWORK, "outer_steps": 1, **arguments}))


def test_a_resume_with_another_factor_is_refused(whole, tmp_path, monkeypatch, capsys):
    args, folder = whole
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    last = str(folder / RUN / "checkpoints/last.ckpt")
    assert main([*args, "--model.factor", "1", "--trainer.max_epochs", "4", "--ckpt_path", last]) == 2
    assert "factor was 2 and is 1" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
@pytest.mark.parametrize("method", [IDC, DREAM])
def test_other_precisions_give_finite_images(method, precision, tmp_path):
    trainer = quiet_trainer(tmp_path, max_epochs=1, precision=precision)
    module = method(network=NETWORK, outer_steps=2, network_images=8)
    trainer.fit(module, datamodule=TinyData(batch_real=4))
    assert bool(module.images.isfinite().all())


@pytest.mark.parametrize("method", [IDC, CondensationModule, FRePo])
def test_mixed_precision_trains_networks_whose_weights_are_of_now(method, tmp_path, monkeypatch):
    """Some versions of Lightning keep the weights that were cast for a whole training step, which has many updates."""
    found = []
    for cached in (False, True):
        context = partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=cached)
        monkeypatch.setattr(MixedPrecision, "autocast_context_manager", lambda _, context=context: context())
        given = {"network_images": 30, "batch_network": 8} if method is IDC else {"inner_epochs": 3}
        module = method(network=NETWORK, outer_steps=3, lr_network=0.1, **given)
        quiet_trainer(tmp_path, max_epochs=1, precision="bf16-mixed").fit(module, datamodule=TinyData(batch_real=4))
        found.append([module.images, *module.network.parameters()])
    assert all(map(torch.equal, *found))


def test_a_recipe_of_plain_epochs_trains_the_whole_set_as_long_as_it_says(whole, tmp_path, monkeypatch):
    args, _ = whole
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    baseline = ["--evaluation.baselines", "[whole set]", "--evaluation.whole_set_epochs", "1"]
    assert main([*args, "--trainer.max_epochs", "1", *baseline]) == 0
    (score,) = json.loads((tmp_path / RUN / "results.json").read_text())["columns"][1]["scores"]
    assert score["epochs"] == 1
    assert "cutmix(0.5)" not in score["augmentation"]


# What is drawn, against an independent version, image by image


def independent(image, strategy, generator):
    """One image, ``(C, H, W)``, by NumPy and SciPy (protocol of the authors' code)."""
    height, width = image.shape[1:]
    image = image.copy()
    names = strategy.split("_")
    if "flip" in names and generator.random() < 0.5:
        image = image[:, :, ::-1].copy()
    if "color" in names:
        image = image + generator.random() - 0.5
        mean = image.mean(0, keepdims=True)
        image = (image - mean) * 2 * generator.random() + mean
        mean = image.mean()
        image = (image - mean) * (0.5 + generator.random()) + mean
    choices = [name for name in ("crop", "scale", "rotate") if name in names]
    choice = choices[generator.integers(len(choices))] if choices else ""
    if choice == "crop":
        most = int(height / 8 + 0.5)
        down, right = generator.integers(-most, most + 1, 2)
        padded = np.pad(image, ((0, 0), (most, most), (most, most)))
        image = padded[:, most + down : most + down + height, most + right : most + right + width]
    if choice in ("scale", "rotate"):
        if choice == "scale":
            x, y = 1 / 1.2 + (1.2 - 1 / 1.2) * generator.random(2)
            matrix = np.diag([y, x])
        else:
            angle = np.deg2rad(30 * generator.random() - 15)
            matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        centre = (np.array([height, width]) - 1) / 2
        wide = np.pad(image, ((0, 0), (1, 1), (1, 1)))  # a point half outside is blended with zero
        offset = centre - matrix @ centre + 1
        image = np.stack(
            [affine_transform(part, matrix, offset, order=1, output_shape=(height, width)) for part in wide]
        )
    if "cutout" in names:
        half = int(height / 2 + 0.5) // 2
        row, column = generator.integers(0, height + 1, 2)
        image[:, max(row - half, 0) : max(row + half, 0), max(column - half, 0) : max(column + half, 0)] = 0
    return image


STRATEGIES = ("color_crop_cutout", "color_crop_flip_scale_rotate", "crop_scale_rotate")
SHAPES = ((1, 12, 12), (3, 8, 8))
FAST = list(zip(STRATEGIES, SHAPES, strict=False))


@pytest.mark.parametrize(("strategy", "shape"), some_slow(list(itertools.product(STRATEGIES, SHAPES)), FAST), ids=str)
def test_augmentation_has_the_distribution_of_an_independent_version(strategy, shape):
    """Mean and mean square of every pixel over 6,000 draws; images that all are drawn apart."""
    image = np.random.default_rng(0).normal(size=shape)
    augment, count = DiffAugment(strategy), 6000
    one = torch.tensor(image)[None]
    ours = torch.cat([augment.batch(one, seed) for seed in range(count)]).numpy()
    generator = np.random.default_rng(1)
    theirs = np.stack([independent(image, strategy, generator) for _ in range(count)])
    for power in (1, 2):
        a, b = ours**power, theirs**power
        deviation = np.sqrt((a.var(0) + b.var(0)) / count) + 1e-9
        assert np.abs((a.mean(0) - b.mean(0)) / deviation).max() < 5


def test_augmentation_of_a_pair_is_one_draw_and_of_a_batch_one_an_image():
    image = torch.rand(1, 1, 8, 8)
    real, synthetic = DiffAugment("color_crop_cutout").pair(image.repeat(3, 1, 1, 1), image.repeat(2, 1, 1, 1), 5)
    assert len(torch.cat([real, synthetic]).flatten(1).unique(dim=0)) == 1
    batch = DiffAugment("color_crop").batch(image.repeat(6, 1, 1, 1), 5)
    assert len(batch.flatten(1).unique(dim=0)) == 6


def test_a_strategy_of_the_data_loses_its_cutout():
    assert str(DiffAugment().of_data("color_crop_cutout_flip")) == "diffaugment(color_crop_flip)"
    assert str(DiffAugment("cutout").of_data("color")) == "diffaugment(cutout)"


def test_all_images_of_a_batch_are_cropped_or_none_is():
    """One of crop, scale and rotate a batch; a crop moves pixels, the others blend them."""
    image, cropped = torch.rand(1, 1, 12, 12), []
    for seed in range(600):
        batch = DiffAugment("crop_scale_rotate").batch(image.repeat(5, 1, 1, 1), seed)
        only_moved = torch.isin(batch, torch.cat([image.flatten(), torch.zeros(1)])).flatten(1).all(1)
        assert len(only_moved.unique()) == 1
        cropped.append(bool(only_moved[0]))
    assert abs(sum(cropped) - 200) < 5 * np.sqrt(600 * 2 / 9)


def independent_boxes(count, side, generator):
    """Pixels that come from another image, in mixed batches of four; a permutation leaves one of them in place."""
    found = np.zeros((count, side, side), dtype=bool)
    for box in found:
        half = int(side * np.sqrt(1 - generator.beta(1, 1))) // 2
        row, column = generator.integers(0, side, 2)
        box[max(row - half, 0) : row + half, max(column - half, 0) : column + half] = generator.random() < 0.75
    return found


def test_cutmix_mixes_half_of_the_batches_and_labels_by_area():
    images, labels = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 16, 16), torch.arange(4)
    mixed, boxes = 0, []
    for seed in range(2000):
        found, shares = CutMix(0.5, 5)(images, labels, torch.Generator().manual_seed(seed))
        if shares.dim() == 1:
            assert torch.equal(found, images)
            continue
        mixed += 1
        assert shares.shape == (4, 5)
        for number in range(4):  # the share of a label is that of its pixels
            for label in range(4):
                share = float((found[number] == label).double().mean())
                assert float(shares[number, label]) == pytest.approx(share, abs=1e-6)
        boxes.append(found[0, 0].numpy() != 0)
    assert abs(mixed - 1000) < 5 * np.sqrt(500)
    ours, theirs = np.stack(boxes), independent_boxes(20_000, 16, np.random.default_rng(1))
    for a, b in ((ours, theirs), (ours.mean((1, 2)), theirs.mean((1, 2)))):  # how often each pixel is covered; the area
        deviation = np.sqrt(b.var(0) / len(a) + b.var(0) / len(b))
        assert (np.abs(a.mean(0) - b.mean(0)) / deviation).max() < 5
    assert torch.equal(CutMix(0.0, 5)(images, labels, torch.Generator())[1], labels)


# Images that are images


@pytest.mark.parametrize("method", ["CondensationModule", "IDC"])
def test_unit_pixels_stay_inside(method, tmp_path):
    seen = []

    class Noted(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            images = module.images.detach()
            pixels = images if module.space == "pixels" else module.data.denormalize(images)
            seen.append((float(pixels.min()), float(pixels.max())))

    found = {}
    for pixels in ("any", "unit"):
        seen.clear()
        arguments = {"outer_steps": 2, "lr_images": 3.0, "pixels": pixels, "init": "real"}
        module = getattr(dc_lightning, method)(network=NETWORK, **arguments)
        trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=[Noted()])
        trainer.fit(module, datamodule=TinyData())
        found[pixels] = min(low for low, _ in seen), max(high for _, high in seen)
    assert found["any"][0] < -0.01 or found["any"][1] > 1.01
    assert -1e-6 <= found["unit"][0] <= found["unit"][1] <= 1 + 1e-6
    with pytest.raises(InputError, match=r"Unknown model\.pixels 'all': expected one of any, unit"):
        IDC(pixels="all")


def test_eight_bits_are_what_a_file_holds(tmp_path):
    images = torch.randn(4, 1, 6, 6)
    synthetic = dc_lightning.SyntheticSet(images, torch.arange(2).repeat_interleave(2), (0.4,), (0.3,), ("a", "b"))
    rounded = synthetic.as_8_bit()
    synthetic.export(tmp_path / "folder")
    (read,) = load_synthetic(tmp_path / "folder")
    torch.testing.assert_close(rounded.images, read.images)
    assert rounded.checksum != synthetic.checksum
    assert rounded.checksum == rounded.as_8_bit().checksum
    assert repr(synthetic).startswith("SyntheticSet by synthetic: 4 images of 1x6x6, hard labels of 2 classes")


def test_a_fit_scores_its_set_as_8_bit_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dc-lightning"])
    words = [*ARGS["IDC"], "--trainer.max_epochs", "1", "--evaluation.baselines", "[8-bit]"]
    assert main(words) == 0
    results = json.loads((tmp_path / RUN / "results.json").read_text())
    assert [column["name"] for column in results["columns"]] == ["IDC", "8-bit"]
    assert results["columns"][1]["training_images"] == 24
    (synthetic,) = load_synthetic(tmp_path / RUN / "synthetic.pt")
    assert results["checksum"] == synthetic.checksum
    assert (results["test_images"], results["class_names"]) == (15, ["class 0", "class 1", "class 2"])
