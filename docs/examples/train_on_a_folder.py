"""Trains on a folder of photographs and says how good it got.

python train_on_a_folder.py DIR [key=value ...]

Run it again to go on after an interrupt; a larger train.epochs trains longer.
"""

import sys

from hpc_recolor import evaluate_run, load_config, train_run

folder, *others = sys.argv[1:]
fields = {"data.photos": folder, "run.name": "mine"} | dict(field.split("=", 1) for field in others)

run = train_run(load_config("quickstart", fields))
(evaluation,) = evaluate_run(run)
for name in ("model", "gray", "mean_color"):
    row = evaluation.rows[name]
    print(f"{name:10}  CIEDE2000 {row['ciede2000']:.2f}  colorfulness {row['colorfulness']:.1f}")
