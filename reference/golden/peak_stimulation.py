"""Cases of Eq. 1-3."""

import numpy as np

from .inputs import UNEVEN, Cases, array, numbers, stack

ROW = array("2 0 3 4 3 1")  # sorted 0 1 2 3 3 4: lower median 2, mean 13/6
TWO = array("1 0 0 0 / 0 0 0 0 / 0 0 0 3")
TIES = numbers(3, 1, 2, 5, 6, low=0, high=2)

CASES: Cases = {
    "peak_stimulation.enlarge": [
        ("by_3", "Corners stay corners; both axes are interpolated.", dict(M=stack(UNEVEN), factor=3)),
        ("one_row_by_8", "An axis of one position repeats it.", dict(M=stack(array("0 2 1")), factor=8)),
        ("one_column_by_2", "One column: only the rows are interpolated.",
         dict(M=stack(array("0 / 2 / -1")), factor=2)),
        ("by_1", "Factor 1 changes nothing.", dict(M=numbers(1, 1, 2, 2, 3), factor=1)),
        ("constant", "A constant stays exactly constant, so that ties stay ties.",
         dict(M=stack(np.full((2, 3), 0.7)), factor=3)),
    ],
    "peak_stimulation.forward": [
        ("two_peaks", "Two peaks in corners; the score is their mean.", dict(M=stack(TWO))),
        ("images_and_classes", "Images and classes are apart; rows in order (image, class, row, column).",
         dict(M=numbers(2, 2, 2, 4, 4))),
        ("lower_median", "An even count: the lower of the two middle values is the median.", dict(M=stack(ROW))),
        ("mean", "The mean as threshold drops a peak that the median keeps.", dict(M=stack(ROW), threshold="mean")),
        ("max", "Threshold max: a peak that equals the maximum counts, here two.",
         dict(M=stack(array("5 0 4 0 5")), threshold="max")),
        ("number_reached", "A peak counts at equality with the threshold.", dict(M=stack(ROW), threshold=2.0)),
        ("no_threshold", "Threshold null: every local maximum counts, negative ones too.",
         dict(M=numbers(4, 1, 1, 5, 5), threshold=None)),
        ("unreachable", "No peak reaches the threshold: the first maximum of the map alone counts.",
         dict(M=stack(array("1 0 2 / 0 0 0 / 2 0 1")), threshold=100.0)),
        ("window_3", "Window 3: peaks two apart are two.", dict(M=stack(array("3 0 2 0 0 1")), threshold=None)),
        ("window_5", "Window 5 joins what window 3 separates.",
         dict(M=stack(array("3 0 2 0 0 1")), window=5, threshold=None)),
        ("window_larger_than_map", "The window is clipped at the border.",
         dict(M=numbers(5, 1, 1, 3, 2), window=7, threshold=None)),
        ("tie_in_window", "Of equal neighbours, diagonal ones too, the first in row-major order is the peak.",
         dict(M=stack(array("0 0 2 / 0 2 0 / 0 0 0"), array("1 1 0 / 0 0 0 / 0 3 3")))),
        ("plateaus", "Plateaus: a position is a peak when no equal one comes earlier in its own window.",
         dict(M=TIES, threshold=None)),
        ("plateaus_window_5", "The same plateaus under window 5.", dict(M=TIES, window=5, threshold=None)),
        ("constant", "A constant map has one peak, (0, 0).", dict(M=stack(np.full((3, 3), -0.5), np.zeros((3, 3))))),
        ("one_pixel", "A map of one pixel is its own peak.", dict(M=stack(array("-2")))),
        ("one_column", "A map of one column.", dict(M=stack(array("1 / 3 / 0 / 4")))),
        ("negative_map", "Nothing outside the map takes part: all values negative, peaks at the border.",
         dict(M=stack(array("-1 -2 -3 / -2 -4 -3 / -3 -3 -1")))),
        ("no_images", "No images: no scores, no peaks.", dict(M=np.zeros((0, 2, 3, 3)))),
        ("gaussian", "f is a Gaussian: cut off at the border, sums where two overlap.",
         dict(M=stack(TWO), f=("gaussian", 0.8))),
        ("upsample_3", "Peaks on the map enlarged by 3, in enlarged coordinates.", dict(M=stack(UNEVEN), upsample=3)),
        ("upsample_8_one_row", "Enlarged by 8; with H = 1 all 8 rows are equal and the first holds the peaks.",
         dict(M=stack(array("0 2 0.25 1.5")), upsample=8)),
        ("upsample_2_one_column", "Enlarged by 2 with W = 1.", dict(M=stack(array("0 / 2 / 1.5 / 3")), upsample=2)),
        ("upsample_3_constant", "A constant map, enlarged, still has one peak.",
         dict(M=stack(np.full((2, 2), 0.7)), upsample=3)),
        ("upsample_2_gaussian", "The Gaussian's distances are enlarged positions.",
         dict(M=stack(UNEVEN), f=("gaussian", 1.5), upsample=2)),
    ],
    "peak_stimulation.backward": [
        ("two_peaks", "Every peak gets dL/ds / N.", dict(grad_scores=array("6"), M=stack(TWO))),
        ("images_and_classes", "Each class of each image has its own gradient; negative ones and zero too.",
         dict(grad_scores=array("2 -1 / 0 3"), M=numbers(2, 2, 2, 4, 4))),
        ("unreachable", "The one peak of an unreachable threshold gets the whole gradient.",
         dict(grad_scores=array("2"), M=stack(array("1 0 2 / 0 0 0 / 2 0 1")), threshold=100.0)),
        ("gaussian", "The gradient spreads as f does.",
         dict(grad_scores=array("2"), M=stack(TWO), f=("gaussian", 0.8))),
        ("upsample_3", "Back through the enlargement by its transpose.",
         dict(grad_scores=array("4"), M=stack(UNEVEN), upsample=3)),
        ("upsample_8_one_row", "H = 1: all eight rows go back to the one.",
         dict(grad_scores=array("1"), M=stack(array("0 2 0.25 1.5")), upsample=8)),
    ],
}  # fmt: skip
