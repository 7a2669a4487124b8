"""A metric of one's own, measured from outside: the share of chroma that a colorizer finds.

python own_metric.py DIR
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hpc_recolor import Colorizer
from recolor_kernels import AB_SCALE, rgb_to_lab


def mean_chroma(picture: Image.Image) -> float:
    """Mean distance of the pixels from gray [Lab units]."""
    _, ab_N2HW = rgb_to_lab(torch.from_numpy(np.array(picture))[None])
    return float(ab_N2HW.mul(AB_SCALE).norm(dim=1).mean())


colorize = Colorizer.load()
for file in sorted(Path(sys.argv[1]).glob("*.[jp][pn]g")):
    photo = Image.open(file).convert("RGB")
    found, true = mean_chroma(colorize(photo)), mean_chroma(photo)
    print(f"{file.name}: chroma {found:.1f}, of the original {true:.1f}: {found / max(true, 0.1):.0%}")
