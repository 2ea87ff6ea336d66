"""Cases of WISE."""

import numpy as np

from .inputs import Cases, array, mask, numbers

MASKS = np.array([
    mask("####.. ####.. ####.. ......"), mask("..#... ..#... ...... ......"), mask("....## ....## ....## ....##"),
    mask("###### ###### ###### ######"), mask("...... ...... ...... #....."),
])  # fmt: skip
OBJECTNESS = array("0.875 0.5 0.875 0.125 0")[0]
SEEDS = np.array([[0, 2, 1], [1, 5, 3], [3, 0, 2], [3, 2, 1]])
MAPS = np.array([array("0 0.25 0 / 0 0 0.5"), array("0.5 0 0 / 0 0.5 0"), array("0 0 0 / 0 0 1"), np.zeros((2, 3))])
PEAKS = np.array([[0, 1, 1], [0, 2, 4], [2, 0, 0], [5, 1, 3]])
FOUND = np.array([
    mask("###... ###... ...... ......"), mask("...... ...... ...... ..#..."), mask("....#. ....#. ...... ......"),
])  # fmt: skip

CASES: Cases = {
    "pseudo_labels.class_loss": [
        ("", "The mean over pictures and classes.",
         dict(scores=numbers(31, 2, 3), labels=np.array([[1, 0, 1], [0, 0, 0]]))),
    ],
    "pseudo_labels.seed_map": [
        ("", "A later peak overwrites; the first of equal pixels; a map of zeros gives none.",
         dict(peaks=PEAKS, prms=MAPS)),
        ("picture", "In a picture of another size, where the pixel's centre lies.",
         dict(peaks=PEAKS[:2], prms=MAPS[:2], size=[5, 4])),
    ],
    "pseudo_labels.seeds_of": [("", "Row by row.", dict(seed_map=np.array([[0, 3, 0], [1, 0, 20]])))],
    "pseudo_labels.record": [("", "x from the column, y from the row.", dict(seed=[3, 7], size=[4, 14]))],
    "pseudo_labels.pixel": [
        ("half_to_even", "Halves go to the even pixel.", dict(record=[0.3125, 0.4375], size=[8, 8])),
        ("inside", "A record near 1 stays inside.", dict(record=[0.96875, 0.96875], size=[4, 6])),
    ],
    "pseudo_labels.probabilities": [
        ("", "Shares of the objectness of those that hold the seed.",
         dict(holding=np.array([True, False, True, True]), objectness=array("0.5 1 0.25 0.25")[0])),
        ("uniform", "Uniform where the sum is 0.",
         dict(holding=np.array([True, False, True]), objectness=array("0 1 0")[0])),
        ("none", "Nobody holds it: 0.", dict(holding=np.zeros(2, bool), objectness=array("0.5 1")[0])),
    ],
    "pseudo_labels.drawn": [
        ("", "The first whose sum exceeds u.", dict(probabilities=array("0 0.25 0.25 0 0.5")[0], u=0.375)),
        ("edge", "A sum equal to u is not enough.", dict(probabilities=array("0.25 0.25 0 0.5")[0], u=0.5)),
        ("beyond", "Where rounding leaves the sum below u: the last that has a probability.",
         dict(probabilities=array("0.25 0.5 0")[0], u=0.875)),
    ],
    "pseudo_labels.assign": [
        ("", "The first of the highest objectness that holds the seed; the law; a seed that nobody holds well.",
         dict(masks=MASKS, objectness=OBJECTNESS, seeds=SEEDS)),
        ("uncovered", "A seed that nobody holds is dropped; objectness 0 has a uniform law.",
         dict(masks=MASKS[[0, 4]], objectness=array("0.5 0")[0], seeds=SEEDS)),
        ("none", "No proposals: no label.", dict(masks=MASKS[:0], objectness=OBJECTNESS[:0], seeds=SEEDS)),
    ],
    "pseudo_labels.box": [("", "Both ends count.", dict(mask=MASKS[2]))],
    "pseudo_labels.refine": [
        ("", "The best overlap among those above the threshold; a mask that meets none stays.",
         dict(detections=FOUND, masks=MASKS, objectness=OBJECTNESS)),
        ("all", "A lower threshold.", dict(detections=FOUND, masks=MASKS, objectness=OBJECTNESS, threshold=0.0)),
    ],
}  # fmt: skip
