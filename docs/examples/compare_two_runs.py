"""Which of two runs is closer to the true colors, and is it more than chance?

python compare_two_runs.py RUN RUN DIR

DIR holds photographs that neither run has learned from. The interval is of the mean difference, paired by photograph.
"""

import sys
from math import sqrt
from statistics import mean, stdev

from hpc_recolor import evaluate_run

one, other, photos = sys.argv[1:]
errors = []
for run in (one, other):
    (evaluation,) = evaluate_run(run, data=photos)
    errors.append([image.value("ciede2000") or 0.0 for image in evaluation.images])

differences = [first - second for first, second in zip(*errors, strict=True)]
half_width = 1.96 * stdev(differences) / sqrt(len(differences))
print(f"{one}: {mean(errors[0]):.2f}, {other}: {mean(errors[1]):.2f} (CIEDE2000, {len(differences)} photographs)")
print(f"difference {mean(differences):.2f} ± {half_width:.2f} (95 %)")
