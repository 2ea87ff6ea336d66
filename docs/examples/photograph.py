"""A photograph to masks: python docs/examples/photograph.py [PHOTOGRAPH]; needs pip install ".[photos]"."""

import sys

from PIL import Image
from skimage import data

from prm import Segmenter

picture = Image.open(sys.argv[1]) if len(sys.argv) > 1 else Image.fromarray(data.coffee())

segmenter = Segmenter.from_pretrained("efficientnet_lite0")
answer = segmenter(picture)

for one in answer.instances:
    mask = one.mask.masks()[0]  # (H, W) bool
    row, column = one.peak
    print(f"{one.name} ({one.confidence:.2f}): {int(mask.sum())} pixels, peak at {row:.0f}, {column:.0f}")

# Only what you name, in several pictures, without a second look at the weights on disk.
animals = Segmenter.from_pretrained("efficientnet_lite0", classes=["cat", "dog", "bird"], size=320)
for found in animals([data.chelsea(), data.coffee()]):
    print(", ".join(one.name for one in found.instances) or "no animal")
