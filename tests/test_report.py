"""Tables out of results files: what is pooled, what is compared, what is left out."""

import csv
import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from conftest import TinyData
from PIL import Image

from dc_lightning import load_recipe
from dc_lightning.cli import main
from dc_lightning.data import FashionMNIST
from dc_lightning.evaluation.baselines import random_set
from dc_lightning.evaluation.fairness import augmentation_robust_score, label_robust_score
from dc_lightning.experiments.leaderboard import leaderboards
from dc_lightning.experiments.report import image_figure, tables
from dc_lightning.experiments.rows import collect

CONFIGS = Path(__file__).parent.parent / "configs"


def results(folder, *, method="DC", seed=0, accuracies=(0.7, 0.72), network="ConvNet", distance="ours", ipc=1, **more):
    """A results.json as a fit by the paper's protocol writes it, or with other settings."""
    source = {
        "method": "gradient matching" if method == "DC" else method,
        "dataset": "FashionMNIST",
        "network": network,
        "distance": distance,
        "ipc": ipc,
        "init": "noise",
        "seed": seed,
        "iteration": 1000,
        "batch_real": 256,
        "outer_steps": ipc,
        "inner_epochs": 50 if ipc == 10 else 1,
        "lr_images": 0.1,
    }
    source |= {key: value for key, value in more.items() if key not in ("tested_on", "epochs", "recipe")}
    if "made_epochs" in more:
        source["epochs"] = source.pop("made_epochs")
    tested = more.get("tested_on", "ConvNet")
    epochs = more.get("epochs", 300)
    seeds = [1000 * seed + number for number in range(len(accuracies))]
    score = {"network": tested, "accuracies": list(accuracies), "seeds": seeds, "epochs": epochs, "augmentation": []}
    content = {
        "format": "dc_lightning results 1",
        "kind": "condensation",
        "dataset": source["dataset"],
        "ipc": ipc,
        "source": source,
        "seed": seed,
        "columns": [{"name": method, "training_images": 10, "scores": [score]}],
        "configuration": {"evaluation": {"recipe": more.get("recipe", {})}},
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))


def only(rows, **wanted):
    (row,) = [row for row in rows if all(getattr(row.key, name) == value for name, value in wanted.items())]
    return row


def test_experiments_are_pooled_and_copies_count_once(tmp_path):
    results(tmp_path / "a", seed=0, accuracies=(0.70, 0.72))
    results(tmp_path / "b", seed=1, accuracies=(0.74, 0.76))
    results(tmp_path / "copy", seed=1, accuracies=(0.74, 0.76))
    found = collect([tmp_path])
    rows, read, problems = found.rows, found.folders, found.problems
    (row,) = rows
    assert row.accuracy == (pytest.approx(73.0), pytest.approx(5**0.5))
    assert (len(row.accuracies), row.sets, len(read), problems) == (4, 2, 3, [])
    assert row.departures == ()
    assert row.paper == (70.5, 0.6)


def test_the_same_seeds_with_other_accuracies_count_once(tmp_path):
    """Such as from another machine."""
    results(tmp_path / "a", accuracies=(0.7, 0.7))
    results(tmp_path / "b", accuracies=(0.7, 0.8))
    found = collect([tmp_path])
    (row,), (problem,) = found.rows, found.problems
    assert row.accuracy == (pytest.approx(70), pytest.approx(0))
    assert f"'{tmp_path}/b/results.json' repeats seeds" in problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"iteration": 200}, "200 iterations"),
        ({"batch_real": 64}, "batch_real 64"),
        ({"init": "real"}, "init real"),
        ({"lr_images": 1.0}, "lr_images 1.0"),
        ({"ipc": 10, "inner_epochs": 10}, "inner_epochs 10"),
        ({"network": "MLP", "lr_images": 0.1}, "lr_images 0.1"),
        ({"outer_steps": 10, "inner_epochs": 50}, "outer_steps 10, inner_epochs 50"),
        ({"momentum_images": 0.9}, "momentum_images 0.9"),
        ({"lr_images_cooldown": 0.5}, "lr_images_cooldown 0.5"),
        ({"lr_images_cooldown": 0.5, "max_epochs": 1000}, "lr_images_cooldown 0.5"),
        ({"lr_images_cooldown": 0.5, "max_epochs": 2000}, "lr_images_cooldown 0.5 of 2000 iterations"),
        ({"precision": "bf16-mixed"}, "precision bf16-mixed"),
        ({"strength": 3}, "strength 3"),
        ({"resumed": "from iteration 4, before with lr_images 5"}, "resumed from iteration 4, before with lr_images 5"),
    ],
)
def test_a_custom_set_is_told_apart_with_its_departures_in_a_note(change, said, tmp_path):
    results(tmp_path / "paper", ipc=change.get("ipc", 1))
    results(tmp_path / "ours", seed=1, **change)
    rows = collect([tmp_path]).rows
    assert {(row.key.label, ", ".join(row.departures)) for row in rows} == {("DC", ""), ("DC, custom", said)}
    text = "\n".join(table.markdown() for table in tables(rows))
    assert said in text
    if change.get("network", "ConvNet") == "ConvNet":
        assert "| DC, custom [1] |" in text


def test_images_of_another_shape_are_a_row_of_their_own_beside_no_figure_of_a_paper(tmp_path):
    results(tmp_path / "usual", image_shape=[1, 28, 28])
    results(tmp_path / "resized", seed=1, image_shape=[3, 32, 32], lr_images=0.1)
    rows = collect([tmp_path]).rows
    assert {(*row.key.terms, row.sets, row.paper) for row in rows} == {(1, (70.5, 0.6)), ("images of 3x32x32", 1, None)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 50}, "51 test epochs"),
        ({"recipe": {"lr": 1.0}}, "evaluation lr 1.0"),
        ({"tested_on": "ConvNetBN"}, "augmentation none"),
    ],
)
def test_scores_by_another_recipe_are_told_apart(change, said, tmp_path):
    results(tmp_path / "paper")
    results(tmp_path / "ours", seed=1, **change)
    rows = collect([tmp_path]).rows
    assert {row.key.scored for row in rows} == {(), (said,)}


def test_several_recipes_are_rows_of_their_own_and_only_a_methods_own_has_the_papers_figure(tmp_path):
    results(tmp_path / "both")
    path = tmp_path / "both/results.json"
    content = json.loads(path.read_text())
    (score,) = content["columns"][0]["scores"]
    siamese = ["siamese(color_crop_cutout_flip_scale_rotate)"]
    other = {**score, "recipe": "DSA", "epochs": 1000, "augmentation": siamese, "accuracies": [0.8, 0.8]}
    content["columns"][0]["scores"].append(other)
    path.write_text(json.dumps(content))
    rows = collect([tmp_path]).rows
    text = "\n".join(table.markdown() for table in tables(rows))
    assert "| DC | 71.0 ± 1.0 (70.5 ± 0.6), n=2 |" in text
    assert "| DC, recipe DSA | 80.0 ± 0.0, n=2 |" in text


def test_a_set_of_a_shipped_preset_is_called_by_it(tmp_path):
    fast = {"init": "k-means", "lr_images": 0.3, "lr_images_cooldown": 0.5, "batch_real": 64, "iteration": 280}
    results(tmp_path / "fast", **fast)
    results(tmp_path / "almost", seed=1, **{**fast, "iteration": 279})
    results(tmp_path / "elsewhere", seed=2, **fast, dataset="SVHN")
    rows = collect([tmp_path]).rows
    labels = {(row.key.dataset, row.key.label) for row in rows}
    assert labels == {
        ("FashionMNIST", "DC, preset fashion_mnist_dc"),
        ("FashionMNIST", "DC, custom"),
        ("SVHN", "DC, custom"),
    }


def test_a_method_of_the_same_name_from_elsewhere_has_no_papers_figure(tmp_path):
    results(tmp_path / "theirs", **{"class": "their.DC"})
    (row,) = collect([tmp_path]).rows
    assert row.paper is None


def test_what_bears_on_a_set_keeps_rows_apart(tmp_path):
    """Epochs of the network that selects, a normalisation of one's own, arguments of any name of other methods."""
    for epochs in (1, 10):
        results(tmp_path / f"herding{epochs}", method="herding", seed=epochs, made_epochs=epochs)
        results(tmp_path / f"theirs{epochs}", seed=epochs, **{"class": "their.Method", "made_epochs": epochs})
    results(tmp_path / "mean", mean=[0.9])
    rows = collect([tmp_path]).rows
    assert sorted(row.key.label for row in rows if row.key.method == "herding") == [
        "herding, features after 1 epochs",
        "herding, features after 10 epochs",
    ]
    assert sorted(row.departures for row in rows if not row.is_ours)[0][0].startswith("iterations")
    assert len([row for row in rows if not row.is_ours]) == 2
    (mean,) = [row for row in rows if "mean [0.9]" in row.departures]
    assert mean.key.label == "DC, custom"


def test_an_exported_set_is_not_a_repeat_of_its_original(tmp_path):
    results(tmp_path / "a", accuracies=(0.7, 0.72))
    results(tmp_path / "b", accuracies=(0.6, 0.62), stored_as="8-bit images")
    found = collect([tmp_path])
    rows, problems = found.rows, found.problems
    assert problems == []
    assert {row.key.label: round(row.accuracy[0]) for row in rows} == {"DC": 71, "DC, 8-bit images": 61}


def test_gain_over_random_and_share_of_the_whole_set(tmp_path):
    results(tmp_path / "dc", accuracies=(0.7, 0.7), iteration=200)
    results(tmp_path / "random", method="random", accuracies=(0.5, 0.5))
    results(tmp_path / "other", method="random", accuracies=(0.1,) * 5, epochs=10, seed=3)  # another recipe
    results(tmp_path / "other_dc", accuracies=(0.3, 0.3), epochs=10, seed=4)
    results(tmp_path / "third_dc", accuracies=(0.3, 0.3), epochs=20, seed=5)  # no random images by this one
    results(tmp_path / "herding", method="herding", accuracies=(0.6, 0.6))
    results(tmp_path / "whole", method="whole set", accuracies=(0.875,), epochs=19)
    rows = collect([tmp_path]).rows
    markdown = "\n".join(table.markdown() for table in tables(rows))
    assert "| DC, custom [1] | 70.0 ± 0.0 (70.5 ± 0.6), n=2 |" in markdown
    assert "| whole set, 20 epochs | 87.5 ± 0.0 (93.5 ± 0.1), n=1 |" in markdown
    assert "| ConvNet, 1 | DC, custom [1] | 70.0 ± 0.0 | 1, 2 | +20.0 | 80 | 27.4" in markdown
    assert "| ConvNet, 2 | herding, features after None epochs | 60.0 ± 0.0 | 1, 2 | +10.0 | 69 | 23.3" in markdown
    assert "| DC, 11 test epochs | 30.0 ± 0.0 | 1, 2 | +20.0 | 34 |" in markdown
    assert "| DC, 21 test epochs | 30.0 ± 0.0 | 1, 2 |  |" in markdown


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_leaderboard_has_the_best_first_and_marks_what_is_no_fair_comparison(tmp_path):
    for number, (name, accuracy) in enumerate({"a": 0.7, "b": 0.8, "c": 0.6, "soft": 0.9, "packed": 0.85}.items()):
        results(tmp_path / name, seed=number, accuracies=(accuracy,), lr_images=1.0 + number, image_shape=[1, 4, 4])
    results(tmp_path / "random", method="random", accuracies=(0.5,), image_shape=[1, 4, 4])
    for path in tmp_path.glob("*/results.json"):
        edited(path, lambda content: content["columns"][0].update(labels="hard"))
    edited(tmp_path / "soft/results.json", lambda content: content["columns"][0].update(labels="soft"))
    edited(tmp_path / "packed/results.json", lambda content: content["source"].update(factor=2))
    edited(tmp_path / "a/results.json", lambda content: content["columns"][0].update(training_images=20))
    (board,) = leaderboards(collect([tmp_path]).rows)
    assert board.row_names() == [f"ConvNet, {place}" for place in range(1, 7)]
    found = [
        [board.cells[row, column] for column in ("accuracy", "labels", "images in one", "kB")]
        for row in board.row_names()
    ]
    assert found == [
        ["90.0 ± 0.0", "soft *", "1", "0.6"],
        ["85.0 ± 0.0", "hard", "4 *", "0.6"],
        ["80.0 ± 0.0", "hard", "1", "0.6"],
        ["70.0 ± 0.0", "hard", "1", "1.3 *"],
        ["60.0 ± 0.0", "hard", "1", "0.6"],
        ["50.0 ± 0.0", "hard", "1", "0.2 *"],  # real images have a byte a number
    ]
    assert board.notes[-1] == "* differs from most sets of this test network"


def test_a_leaderboard_gives_the_robust_scores(tmp_path):
    siamese = ["siamese(color_crop_cutout_flip_scale_rotate)"]

    def recipes(*means):
        def change(content):
            (score,) = content["columns"][0]["scores"]
            with_it = {**score, "recipe": "DSA", "epochs": 1000, "augmentation": siamese, "accuracies": [means[0]]}
            without = {**score, "recipe": "DSA plain", "epochs": 1000, "accuracies": [means[1]]}
            content["columns"][0]["scores"] = [with_it, without]

        return change

    for name, means in {"DSA": (0.8, 0.7), "random": (0.5, 0.6), "whole set": (0.9, 0.85)}.items():
        results(tmp_path / name, method=name, accuracies=(0.1,), augmentation="siamese")
        edited(tmp_path / name / "results.json", recipes(*means))
    (board,) = leaderboards(collect([tmp_path]).rows)
    rows = {
        board.cells[row, "set"].split(",")[0] + board.cells[row, "recipe"].strip(" *"): row for row in board.row_names()
    }
    lrs = {name: board.cells[row, "LRS"] for name, row in rows.items()}
    assert lrs["DSADSA"] == f"{label_robust_score(0.3, 0.1):.1f}"
    assert lrs["DSADSA plain"] == f"{label_robust_score(0.1, 0.15):.1f}"
    assert lrs["randomDSA"] == f"{label_robust_score(0, 0.4):.1f}"
    assert board.cells[rows["DSADSA"], "ARS"] == f"{augmentation_robust_score(0.3, 0.1):.1f}"
    assert board.cells[rows["randomDSA"], "ARS"] == f"{augmentation_robust_score(0, 0):.1f}"


def test_the_whole_set_is_the_bound_of_a_recipe_with_cutmix_without_it(tmp_path):
    names = load_recipe("idc").augmentation_names("ConvNet", FashionMNIST)
    assert names[-1] == "cutmix(0.5)"
    for name, mean in {"IDC": 0.8, "random": 0.5, "whole set": 0.9}.items():
        results(tmp_path / name, method=name, accuracies=(mean,))
        used = {"recipe": "IDC", "epochs": 1000, "augmentation": names[:-1] if name == "whole set" else names}
        edited(
            tmp_path / name / "results.json", lambda content, used=used: content["columns"][0]["scores"][0].update(used)
        )
    (board,) = leaderboards(collect([tmp_path]).rows)
    (row,) = [row for row in board.row_names() if board.cells[row, "set"].startswith("IDC")]
    assert board.cells[row, "LRS"] == f"{label_robust_score(0.3, 0.1):.1f}"


def test_rows_and_columns_have_the_papers_order(tmp_path):
    widths = ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"]
    for network in widths:
        for tested_on in widths:
            results(tmp_path / f"{network}_{tested_on}", network=network, tested_on=tested_on)
    for distance in ("cos", "mse", "ours"):
        results(tmp_path / distance, distance=distance)
    rows = collect([tmp_path]).rows
    found = {table.title: table.markdown().splitlines() for table in tables(rows)}
    by_width = next(lines for title, lines in found.items() if "T2" in title)
    assert by_width[2] == f"| set | {' | '.join(widths)} |"
    assert [line.split(" | ")[0][2:] for line in by_width[4:8]] == [f"DC, {network}" for network in sorted(widths)]
    distances = next(lines for title, lines in found.items() if "T7" in title)
    assert distances[2] == "| distance | ConvNet |"
    assert [line.split(" | ")[0][2:] for line in distances[4:]] == ["ours, DC", "mse, DC", "cos, DC"]


def test_figures_are_not_cut_where_there_is_little_room(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.chdir(tmp_path)
    for number, method in enumerate(("random", "herding", "k-center", "forgetting")):
        results(tmp_path / method, method=method, accuracies=(0.61 + number / 10,) * 2)
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(f"{number}1.0 ± 0.0" in said for number in (6, 7, 8, 9))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"network": "ConvNet"', '"network": null'),
        ("0.7,", "NaN,"),
        ("0.7,", "7.0,"),
        ('"columns": [', '"columns": [], "others": ['),
    ],
)
def test_results_that_make_no_sense_are_named_and_left_out(tmp_path, old, new):
    results(tmp_path / "good", seed=1)
    results(tmp_path / "bad", accuracies=(0.7, 0.7))
    path = tmp_path / "bad/results.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    found = collect([tmp_path])
    rows, read, problems = found.rows, found.folders, found.problems
    assert (len(rows), len(read)) == (1, 1)
    assert len(problems) == 1
    assert str(path) in problems[0]


def test_cells_that_were_not_run_stay_blank(tmp_path):
    for network, tested_on in (("ConvNet", "ConvNet"), ("ConvNet", "MLP"), ("LeNet", "MLP")):
        results(tmp_path / f"{network}_{tested_on}", network=network, tested_on=tested_on)
    for distance in ("mse", "cos"):
        results(tmp_path / distance, distance=distance)
    rows = collect([tmp_path]).rows
    markdown = "\n".join(table.markdown() for table in tables(rows))
    assert "| DC, LeNet | 71.0 ± 1.0, n=2 |  |" in markdown
    assert "| mse, DC | 71.0 ± 1.0, n=2 |" in markdown
    assert only(rows, distance="mse").paper is None


def test_table_2_is_compared_on_mnist(tmp_path):
    results(tmp_path / "a", network="LeNet", tested_on="AlexNet", dataset="MNIST")
    text = (tmp_path / "a/results.json").read_text().replace('"dataset": "FashionMNIST"', '"dataset": "MNIST"')
    (tmp_path / "a/results.json").write_text(text)
    (row,) = collect([tmp_path]).rows
    assert row.paper == (84.7, 2.4)


def test_broken_and_foreign_files_are_named_and_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    results(Path("good"))
    whole = Path("good/results.json").read_text()
    broken = {
        "half": whole[:100],
        "empty": "",
        "list": "[]",
        "other": '{"format": "another tool", "columns": []}',
        "uneven": whole.replace("[0.7, 0.72]", "[0.7]"),
        "no_source": whole.replace('"source"', '"origin"').replace('"dataset": "FashionMNIST", "ipc": 1, ', "", 1),
    }
    for name, text in broken.items():
        Path(name).mkdir()
        Path(name, "results.json").write_text(text)
    Path("binary").mkdir()
    Path("binary/results.json").write_bytes(bytes(range(256)))
    assert main(["report", ".", "--output", "report"]) == 0
    said = capsys.readouterr().err.splitlines()
    for name in (*broken, "binary"):
        assert sum(f"'{name}/results.json'" in line for line in said) == 1, name
    assert "71.0 ± 1.0 (70.5 ± 0.6), n=2" in Path("report/report.md").read_text()


def test_everything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results(Path("runs/a"))
    data = TinyData(size=(28, 28))
    data.setup()
    synthetic = replace(random_set(data, 1, 0), factor=2)
    synthetic.source.update(method="gradient matching", dataset="FashionMNIST", network="ConvNet", distance="ours")
    synthetic.save("runs/a/synthetic.pt")

    def grow(content):
        score = {"network": "ConvNet", "mean": 0.5}
        content["history"] = [{"iteration": number, "scores": [score]} for number in (0, 500)]

    edited(Path("runs/a/results.json"), grow)
    results(Path("runs/b"), method="<b>DC", seed=1)
    Path("notes.md").write_text("before\n<!-- report -->\nold\n<!-- end -->\nafter\n")
    assert main(["report", "runs", "--output", "out", "--into", "notes.md"]) == 0
    text = Path("notes.md").read_text()
    assert text.startswith("before\n<!-- report -->\n**Test accuracy")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    line, _ = csv.DictReader(Path("out/report.csv").read_text().splitlines())
    assert (line["mean"], line["n"], line["difference"]) == ("71.0", "2", "0.5")
    html = Path("out/report.html").read_text()
    assert html.count("data:image/png;base64,") == 3  # the set, as it is stored and decoded, and the curve
    assert ", decoded</figcaption>" in html
    assert "&lt;b&gt;DC" in html
    assert "<b>" not in html
    assert not re.search('(src|href)="(?!data:)', html)
    for name in ("report.png", "images_ipc1.png"):
        with Image.open(Path("out") / name) as image:
            assert min(image.size) > 100
    widths = [Image.open(BytesIO(image_figure([replace(synthetic, factor=factor)]))).width for factor in (1, 2)]
    assert widths[1] > 2 * widths[0]  # the decoded images beside the stored ones
    assert main(["report", "runs", "--output", "out", "--into", "out/report.md"]) == 2


@pytest.mark.parametrize(("words", "said"), [(["nowhere"], "no folder"), (["."], "no results"), ([], "FOLDER")])
def test_bad_input_gets_one_sentence(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("name", ["README.md", "configs/results/README.md"])
def test_the_tables_that_ship_are_those_of_the_committed_results(name, tmp_path, capsys):
    shipped = (CONFIGS.parent / name).read_text()
    (tmp_path / "README.md").write_text(shipped)
    words = ["report", str(CONFIGS / "results"), "--output", str(tmp_path / "report")]
    assert main([*words, "--into", str(tmp_path / "README.md")]) == 0
    assert (tmp_path / "README.md").read_text() == shipped
    assert capsys.readouterr().err == ""
