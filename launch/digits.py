"""Writes scikit-learn's handwritten digits as images, a folder for each class: python launch/digits.py FOLDER

They come with the package, of which nothing is run.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from bot_dist.convert.location import resolve

rows = np.loadtxt(resolve("package://sklearn/datasets/data/digits.csv.gz"), delimiter=",", dtype=np.int64)
for number, row in enumerate(rows):  # 64 shades of 0 to 16, and the class
    path = Path(sys.argv[1], str(row[-1]), f"{number:04d}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((row[:64].reshape(8, 8) * 255 // 16).astype(np.uint8)).save(path)
