import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GOLDEN_FOLDER, assert_golden_summary
from PIL import Image

from dc_lightning.errors import InputError
from dc_lightning.files import write_whole
from dc_lightning.synthetic import SyntheticSet, load_synthetic

DECODE = json.loads((GOLDEN_FOLDER / "idc_dream.json").read_text())["decode"]


@pytest.fixture
def synthetic():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 4, 5, generator=generator)
    names = ("cat", "a/dog", "10")
    labels = torch.arange(3).repeat_interleave(2)
    return SyntheticSet(images, labels, (0.3, 0.4, 0.5), (0.2, 0.3, 0.25), names, {"method": "test", "ipc": 2})


def test_saving_and_loading_keeps_every_bit(synthetic, tmp_path):
    synthetic.save(tmp_path / "set.pt")
    torch.load(tmp_path / "set.pt", weights_only=True)
    (loaded,) = load_synthetic(tmp_path / "set.pt")
    assert torch.equal(loaded.images, synthetic.images)
    assert torch.equal(loaded.labels, synthetic.labels)
    assert (loaded.mean, loaded.std, loaded.class_names, loaded.source) == (
        synthetic.mean,
        synthetic.std,
        synthetic.class_names,
        synthetic.source,
    )


def test_it_is_a_dataset_of_either_range(synthetic):
    image, label = synthetic[3]
    assert torch.equal(image, synthetic.images[3])
    assert int(label) == 1
    unit = synthetic.with_normalized(False)
    assert torch.equal(unit[3][0], unit.unit_range_images()[3])
    assert 0 <= float(unit.unit_range_images().min()) <= float(unit.unit_range_images().max()) <= 1
    expected = (
        synthetic.images[3] * torch.tensor(synthetic.std).view(3, 1, 1) + torch.tensor(synthetic.mean).view(3, 1, 1)
    ).clamp(0, 1)
    torch.testing.assert_close(unit[3][0], expected)
    batches = list(torch.utils.data.DataLoader(synthetic, batch_size=4))
    assert [len(images) for images, _ in batches] == [4, 2]
    assert len(list(synthetic)) == 6


def test_export_is_an_image_folder_and_comes_back(synthetic, tmp_path):
    synthetic.export(tmp_path / "out")
    (loaded,) = load_synthetic(tmp_path / "out")
    assert loaded.class_names == synthetic.class_names
    assert torch.equal(loaded.labels, synthetic.labels)
    gap = (loaded.unit_range_images() - synthetic.unit_range_images()).abs().max()
    assert float(gap) <= 1 / 255 + 1e-4  # eight bits a channel
    with pytest.raises(InputError, match="not empty"):
        synthetic.export(tmp_path / "out")


def test_a_folder_without_normalisation_asks_for_it(synthetic, tmp_path):
    synthetic.export(tmp_path / "out")
    os.remove(tmp_path / "out" / "synthetic.json")
    with pytest.raises(InputError, match="give mean and std"):
        load_synthetic(tmp_path / "out")
    (loaded,) = load_synthetic(tmp_path / "out", synthetic.mean, synthetic.std)
    assert len(loaded) == 6


def test_ten_and_more_classes_keep_their_order(tmp_path):
    names = tuple(str(n) for n in range(12))
    many = SyntheticSet(
        torch.arange(12.0).view(12, 1, 1, 1).repeat(1, 1, 2, 2) / 12, torch.arange(12), (0.0,), (1.0,), names
    )
    many.export(tmp_path / "out")
    (loaded,) = load_synthetic(tmp_path / "out")
    torch.testing.assert_close(loaded.images, many.images, atol=0.003, rtol=0)


def test_folders_are_matched_by_their_names_not_their_order(tmp_path):
    names = ("shirt/top", "trouser", "pullover")
    for label, name in enumerate(("0_shirt_top", "trouser", "pullover")):  # exported, and somebody's own
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2), 100 * label).save(tmp_path / name / "a.png")
    (loaded,) = load_synthetic(tmp_path, (0.0,), (1.0,), names)
    assert loaded.labels.tolist() == [0, 1, 2]
    torch.testing.assert_close(loaded.images[:, 0, 0, 0], torch.tensor([0.0, 100 / 255, 200 / 255]))
    (tmp_path / "boot").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "boot" / "a.png")
    with pytest.raises(InputError, match="boot"):
        load_synthetic(tmp_path, (0.0,), (1.0,), names)


def test_the_authors_file_has_one_set_an_experiment(tmp_path):
    content = {
        "data": [[torch.randn(4, 1, 2, 2), torch.tensor([0, 0, 1, 1])] for _ in range(3)],
        "accs_all_exps": {"ConvNet": [np.float64(0.3), np.mean([0.2, 0.4])]},
    }
    torch.save(content, tmp_path / "res.pt")
    sets = load_synthetic(tmp_path / "res.pt", (0.1,), (0.2,), ("a", "b"))
    assert [s.source["experiment"] for s in sets] == [0, 1, 2]
    assert torch.equal(sets[2].images, content["data"][2][0])
    with pytest.raises(InputError, match="give mean and std"):
        load_synthetic(tmp_path / "res.pt")


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil-was-here",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"data": Evil()}, "evil.pt")
    with pytest.raises(InputError, match="run code"):
        load_synthetic("evil.pt")
    assert not (tmp_path / "evil-was-here").exists()


def good():
    return {
        "format": "dc_lightning synthetic set 2",
        "images": torch.zeros(2, 1, 2, 2),
        "labels": torch.tensor([0, 1]),
        "mean": [0.5],
        "std": [0.5],
        "class_names": ["a", "b"],
        "source": {},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0])}, "one label"),
        ({"labels": torch.tensor([0, 5])}, "go up to 5"),
        ({"labels": torch.tensor([0, -1])}, "0 or more"),
        ({"labels": torch.tensor([0.0, 0.5])}, "class numbers, or a distribution over the classes .* got 0.5"),
        ({"labels": torch.tensor([[0.5, 0.6], [0.0, 1.0]])}, "sum to 1"),
        ({"labels": torch.tensor([[1.5, -0.5], [0.0, 1.0]])}, "sum to 1"),
        ({"images": torch.zeros(2, 4)}, r"\(n, C, H, W\)"),
        ({"images": torch.full((2, 1, 2, 2), float("nan"))}, "NaN"),
        ({"images": torch.zeros(0, 1, 2, 2), "labels": torch.zeros(0)}, "no images"),
        ({"mean": [0.1, 0.2, 0.3]}, "1 channels"),
        ({"format": "something else"}, "not a synthetic set"),
        ({"format": "", "data": []}, "not a synthetic set"),
        ({"class_names": 3}, "must be lists"),
        ({"source": "x"}, "must be lists"),
    ],
)
def test_contents_that_do_not_fit_are_named(change, message, tmp_path):
    torch.save({**good(), **change}, tmp_path / "set.pt")
    with pytest.raises(InputError, match=message):
        load_synthetic(tmp_path / "set.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_damaged_file_is_named(share, synthetic, tmp_path):
    synthetic.save(tmp_path / "set.pt")
    content = (tmp_path / "set.pt").read_bytes()
    (tmp_path / "set.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="damaged"):
        load_synthetic(tmp_path / "set.pt")


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no synthetic set at"):
        load_synthetic(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match="another kind"):
        load_synthetic(tmp_path / "text.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no folder with one folder"):
        load_synthetic(tmp_path / "empty", (0.5,), (0.5,))


def test_grid_has_one_row_a_class(synthetic, tmp_path):
    grid = synthetic.grid()
    assert grid.shape == (3, 3 * (4 + 2) + 2, 2 * (5 + 2) + 2)
    torch.testing.assert_close(grid[:, 2:6, 2:7], synthetic.unit_range_images()[0])
    torch.testing.assert_close(grid[:, 8:12, 9:14], synthetic.unit_range_images()[3])
    packed = replace(synthetic, factor=2)
    assert torch.equal(packed.grid(), grid)
    decoded = packed.grid(decoded=True)
    assert decoded.shape == (3, 3 * (4 + 2) + 2, 8 * (5 + 2) + 2)
    images, labels = packed.decoded()
    first_of_class_1 = (images[labels == 1][0] * torch.tensor(synthetic.std).view(3, 1, 1)) + torch.tensor(
        synthetic.mean
    ).view(3, 1, 1)
    torch.testing.assert_close(decoded[:, 8:12, 2:7], first_of_class_1.clamp(0, 1))


def test_a_picture_shows_the_images_under_the_names_of_their_classes(synthetic, tmp_path):
    """Blocks of two images, one a class, in rows: a strip for the name, then the images, enlarged."""
    synthetic.save_grid(tmp_path / "grid.png")
    picture = torch.from_numpy(np.array(Image.open(tmp_path / "grid.png"))).permute(2, 0, 1)
    assert min(picture.shape[1:]) >= 600
    assert 0.5 < picture.shape[2] / picture.shape[1] < 3
    pixels = synthetic.unit_range_images().mul(255).round().byte()
    places = []
    for image in pixels:
        corner = image[:, 0, 0].view(3, 1, 1)
        places.append(torch.nonzero((picture == corner).all(0))[0].tolist())
    for first, second in ((0, 1), (2, 3), (4, 5)):  # of one class: side by side
        assert places[first][0] == places[second][0]
        assert places[first][1] < places[second][1]
    for top, left in places[::2]:  # something dark above the first of each class: its name
        assert (picture[:, top - 14 : top, left : left + 60].float().mean(0) < 128).any()


def test_a_picture_of_packed_images_says_how_many_there_are():
    plain = SyntheticSet(torch.rand(4, 1, 8, 8), torch.arange(4), (0.0,), (1.0,), ("a", "b", "c", "d"))
    packed = np.array(replace(plain, factor=2).picture()).astype(float)
    whole = np.array(plain.picture()).astype(float)
    assert np.array_equal(packed[: len(whole)], whole)
    assert packed[len(whole) :].shape[0] > 10
    assert (packed[len(whole) :] < 128).any()


def test_a_picture_of_many_classes_with_long_names_is_no_strip(tmp_path):
    names = tuple(f"a very long name of class {label} \u4e2d" for label in range(100))
    SyntheticSet(torch.rand(100, 1, 8, 8), torch.arange(100), (0.0,), (1.0,), names).save_grid(tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        width, height = picture.size
    assert 0.5 < width / height < 2.5


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.json", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a.json", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"old"


def test_metadata_is_plain_json(synthetic, tmp_path):
    synthetic.export(tmp_path / "out")
    source = json.loads((tmp_path / "out" / "synthetic.json").read_text())["source"]
    assert source == {"method": "test", "ipc": 2, "stored_as": "8-bit images"}  # it is another set than the original


def test_factor_and_space_are_taken_where_a_file_does_not_say_them(synthetic, tmp_path):
    pair = [synthetic.unit_range_images(), synthetic.labels]
    torch.save({"data": [pair]}, tmp_path / "set.pt")
    replace(synthetic, factor=1).export(tmp_path / "folder")
    statistics = synthetic.mean, synthetic.std
    (packed,) = load_synthetic(tmp_path / "set.pt", *statistics, factor=2, space="pixels")
    assert (packed.factor, packed.space) == (2, "pixels")
    (said,) = load_synthetic(tmp_path / "folder", *statistics, factor=2)
    assert said.factor == 1
    (tmp_path / "folder" / "synthetic.json").unlink()
    (unsaid,) = load_synthetic(tmp_path / "folder", *statistics, factor=2, space="pixels")
    assert (unsaid.factor, len(unsaid)) == (2, 4 * len(said))
    assert torch.equal(unsaid.images, said.images)
    for factor in (0, 5, 2.5):
        with pytest.raises(InputError, match=rf"factor must be in 1..4 for images of 4x5, got {factor}"):
            load_synthetic(tmp_path / "set.pt", *statistics, factor=factor)


def test_a_file_of_the_first_version_is_read(tmp_path):
    old = {**good(), "format": "dc_lightning synthetic set 1", "source": {"method": "gradient matching", "ipc": 1}}
    torch.save(old, tmp_path / "set.pt")
    (found,) = load_synthetic(tmp_path / "set.pt")
    assert (found.method, found.factor, found.space) == ("DC", 1, "normalised")


@pytest.mark.parametrize(
    "entry", [e for e in DECODE if e["type"] == "single"], ids=lambda e: f"{e['size']}-{e['factor']}"
)
def test_decoding_is_that_of_the_authors_code(entry):
    shape = 3, entry["channels"], entry["size"], entry["size"]
    pixels = torch.tensor(np.clip(0.5 + np.random.RandomState(2000).standard_normal(shape) / 4, 0, 1))
    mean, std = [0.2] * entry["channels"], [0.3] * entry["channels"]
    stored = SyntheticSet(
        pixels, torch.arange(3), tuple(mean), tuple(std), ("a", "b", "c"), space="pixels", factor=entry["factor"]
    )
    images, labels = stored.decoded()
    assert labels.tolist() == entry["targets"]
    assert_golden_summary(images * 0.3 + 0.2, entry["decoded"])
    assert len(stored) == len(images)
    assert torch.equal(stored[4][0], images[4])
    normalised = replace(stored, images=(pixels - 0.2) / 0.3, space="normalised")
    torch.testing.assert_close(normalised.decoded()[0], images, atol=1e-6, rtol=0)


def test_factor_and_space_are_saved_and_factors_out_of_range_are_named(synthetic, tmp_path):
    packed = replace(synthetic, images=synthetic.unit_range_images(), space="pixels", factor=2)
    packed.save(tmp_path / "set.pt")
    (loaded,) = load_synthetic(tmp_path / "set.pt")
    assert (loaded.space, loaded.factor, len(loaded), loaded.ipc) == ("pixels", 2, 24, 2)
    assert torch.equal(loaded.decoded()[0], packed.decoded()[0])
    with pytest.raises(InputError, match=r"factor must be in 1..4 for images of 4x5, got 5"):
        replace(packed, factor=5).decoded()


def test_soft_labels_are_kept(synthetic, tmp_path):
    probabilities = torch.full((6, 3), 0.1) + 0.7 * torch.eye(3).repeat_interleave(2, dim=0)
    soft = replace(synthetic, labels=probabilities)
    soft.save(tmp_path / "set.pt")
    (loaded,) = load_synthetic(tmp_path / "set.pt")
    assert torch.equal(loaded.labels, probabilities)
    assert torch.equal(loaded.hard_labels, synthetic.labels)
    assert loaded.ipc == 2
    assert torch.equal(loaded.grid(), synthetic.grid())
    with pytest.raises(InputError, match="hard labels only"):
        soft.export(tmp_path / "out")
