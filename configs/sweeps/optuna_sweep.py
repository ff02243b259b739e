"""A search of settings by Optuna (pip install optuna), scored on held-out training images; it may be stopped.

python configs/sweeps/optuna_sweep.py TRIALS [OPTIONS OF FIT]
python configs/sweeps/optuna_sweep.py 20 --data FashionMNIST --model.ipc 1 --trainer.max_epochs 100
"""

import json
import sys
from pathlib import Path

import optuna

from dc_lightning.cli import main


def objective(trial: optuna.Trial) -> float:
    """Accuracy on a tenth of the training images, which the condensation does not see."""
    rate = trial.suggest_float("lr_images", 0.01, 1.0, log=True)
    init = trial.suggest_categorical("init", ["real", "k-means", "nearest"])
    words = ["fit", *sys.argv[2:], f"--model.lr_images={rate}", f"--model.init={init}"]
    words += ["--data.validation=0.1", "--evaluation.split=validation"]
    words += ["--evaluation.baselines=[]", "--evaluation.every_n=0"]
    words += ["--trainer.logger.name=sweep", f"--trainer.logger.version=trial_{trial.number}"]
    if main(words) != 0:
        raise SystemExit("This trial failed; see what is said above.")
    results = json.loads(Path("sweep", f"trial_{trial.number}", "results.json").read_text())
    return float(results["columns"][0]["scores"][0]["mean"])


if __name__ == "__main__":
    study = optuna.create_study(
        study_name="sweep", storage="sqlite:///sweep.db", load_if_exists=True, direction="maximize"
    )
    study.optimize(objective, n_trials=int(sys.argv[1]))
    print(f"best on held-out images: {study.best_value:.3f} by {study.best_params}")
