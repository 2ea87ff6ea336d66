"""Cases of Eq. 6 and Algorithm 1."""

import numpy as np

from .inputs import UNEVEN, Cases, array, mask, numbers
from .network import IMAGE

R = numbers(21, 5, 6, low=0) / 32
N = numbers(22, 5, 6, low=0) / 8
S = mask("###... ####.. ####.. .##... ......")
Q = mask("...### ....## #..### ..#### ######")
PROPOSALS = np.array([S, ~S, mask("...... ..##.. ..##.. ...... ......"), np.zeros((5, 6), bool), np.ones((5, 6), bool)])
MASKS = np.array([
    mask("####.... ........"), mask("######## ........"), mask("..##.... ........"), mask("........ ...#####"),
    mask("........ ......##"), mask("####.... ........"), mask("....#### ........"), mask("######## ........"),
])  # fmt: skip
PRMS = np.array([numbers(seed, 2, 4, low=0) for seed in range(8)])
PRMS = PRMS / PRMS.sum(axis=(1, 2), keepdims=True)
OBJECTNESS, FIT = array("0.5 0.875 0.25 1 0.75")[0], [1.0, 0.5, 0.75, 0.25, 0.5]
SMALL = np.zeros((2, 20, 24), bool)
SMALL[0, 3, 5], SMALL[1, 4:16, 4:16] = True, True  # pixel (3, 5) falls between those that R's size takes
INSTANCES = dict(
    labels=np.array([1, 0, 0, 2, 2, 1, 0, 2]), scores=np.array([0.75, 0.5, 0.5, 0.25, 0.25, 1 / 8, 1 / 16, 1 / 32]),
    peaks=array("0 3 / 0 1 / 0 2 / 1 6 / 1 3 / 0 0 / 0 5 / 0 1"), masks=MASKS, prms=PRMS,
)  # fmt: skip
SCENE = np.array([
    mask(4 * "####.... " + 4 * "........ "), mask(4 * "....#### " + 4 * "........ "),
    mask(4 * "........ " + 4 * "####.... "), mask(4 * "........ " + 4 * "....#### "),
    mask("........ .#####.. .#####.. .#####.." + 4 * " ........"),
])  # fmt: skip

CASES: Cases = {
    "retrieval.contour": [
        ("width_3", "Dilation minus erosion with a 3 x 3 square.",
         dict(S=mask("....... ..###.. ..###.. ..###.. .......") , width=3)),
        ("border_width_5", "The image's edge alone makes no contour.",
         dict(S=mask("####.... ####.... ####.... ####.... ........ ........"), width=5)),
        ("full", "A full mask has none.", dict(S=np.ones((3, 4), bool), width=3)),
        ("width_1", "Width 1: none.", dict(S=S, width=1)),
    ],
    "retrieval.enlarged_response": [
        ("", "From 0 to 1, then enlarged by pixel centres, corners not aligned.", dict(M=UNEVEN, shape=[6, 7])),
        ("constant", "A constant map is 1 all over.", dict(M=np.full((2, 2), 3.0), shape=[4, 4])),
    ],
    "retrieval.background": [
        ("enlarged", "Enlarged by pixel centres, corners not aligned, then compared with bias times the mean.",
         dict(M=UNEVEN, shape=[6, 7], bias=0.95)),
        ("smaller", "To a smaller map; a bias above 1.", dict(M=numbers(1, 5, 5), shape=[3, 4], bias=1.5)),
        ("constant", "A constant map has no background.", dict(M=np.full((2, 2), 3.0), shape=[4, 4], bias=0.95)),
    ],
    "retrieval.terms": [
        ("", "The three sums of Eq. 6.", dict(R=R, S=S, Q=Q, width=3)),
        ("empty_mask", "An empty mask.", dict(R=R, S=np.zeros((5, 6), bool), Q=Q)),
    ],
    "retrieval.score": [("", "Eq. 6.", dict(R=R, S=S, Q=Q, alpha=0.75, beta=0.125, width=3))],
    "retrieval.resize_nearest": [
        ("larger", "3 x 2 to 5 x 7, by pixel centres.", dict(S=mask("#. .# ##"), shape=[5, 7])),
        ("smaller", "5 x 6 to 2 x 3.", dict(S=S, shape=[2, 3])),
    ],
    "retrieval.image_position": [
        ("plain", "Pixel centres of a map position.", dict(position=[1, 2], map_shape=[3, 4], image_shape=[96, 64])),
        ("upsample_8", "A position of the enlarged map, corners aligned.",
         dict(position=[9, 31], map_shape=[3, 4], image_shape=[96, 64], upsample=8)),
        ("one_row", "H = 1: every enlarged row is row 0.",
         dict(position=[1, 4], map_shape=[1, 3], image_shape=[32, 96], upsample=2)),
    ],
    "retrieval.overlap": [
        ("", "Intersection over union.", dict(A=MASKS[0], B=MASKS[1])),
        ("empty", "Two empty masks: 0.", dict(A=np.zeros((2, 2), bool), B=np.zeros((2, 2), bool))),
    ],
    "retrieval.select_classes": [
        ("", "sigmoid(0) = 0.5 reaches 0.5.", dict(s=np.array([1.0, -0.5, 0, -2]))),
        ("by_logit", "The score itself is compared.", dict(s=np.array([1.0, -0.5, 0, -2]), class_logit=-0.5)),
        ("none", "No class is there: sigmoid(1) = 0.731.", dict(s=np.array([1.0, -0.5]), t_class=0.75)),
    ],
    "retrieval.select_peaks": [
        ("", "At least half the strongest, at equality too.", dict(values=np.array([1.0, 4, 2, 1.875]), t_peak=0.5)),
        ("none_positive", "The strongest is not positive: the first strongest alone.",
         dict(values=np.array([-3.0, -1, -2, -1]), t_peak=0.5)),
        ("lower", "At least a quarter of the strongest.",
         dict(values=np.array([1.0, 4, 0.875]), t_peak=0.25)),
        ("by_value", "Above a value of one's own, not at it.",
         dict(values=np.array([1.0, 4, 2]), t_peak=0.5, peak_value=2.0)),
    ],
    "retrieval.best_proposal": [
        ("", "The highest score; empty and full masks are passed over for their areas.",
         dict(R=R, proposals=PROPOSALS, Q=Q, alpha=0.75, beta=0.125, width=3)),
        ("tie", "Of equal scores the first wins.",
         dict(R=R, proposals=PROPOSALS[[2, 0, 0]], Q=Q, alpha=0.75, beta=0.125, width=3)),
        ("other_size", "Proposals of the picture's size are resized to R's.",
         dict(R=R, proposals=SCENE, Q=Q, alpha=0.75, beta=0.125, width=3)),
        ("area", "Other limits: the full mask counts, the small one does not.",
         dict(R=R, proposals=PROPOSALS[[2, 3, 4]], Q=Q, alpha=4.0, beta=0.0078125, area=[0.25, 1.5])),
        ("none", "All are passed over: index -1, the rest zero.",
         dict(R=R, proposals=PROPOSALS[3:], Q=Q, alpha=0.75, beta=0.125, width=3)),
    ],
    "retrieval.smoothed": [
        ("", "A Gaussian of a quarter of the shorter side, mirrored at the border.", dict(R=R, smooth=0.25)),
        ("wide", "Wider than the map: mirrored again and again.", dict(R=R, smooth=1.5)),
        ("none", "0: R itself.", dict(R=R, smooth=0.0)),
    ],
    "retrieval.fit_terms": [
        ("", "Mass, response, objectness, share inside, mass on the contour.",
         dict(R=R, S=S, N=N, Q=Q, objectness=0.625, width=3)),
        ("smoothed", "The mass alone is that of the smoothed map.",
         dict(R=R, S=S, N=N, Q=Q, objectness=0.0, width=3, smooth=0.25)),
    ],
    "retrieval.fit_score": [
        ("", "The weighted sum of logarithms.",
         dict(terms=array("0.5 0.25 0.125 0.75 0.375")[0], weights=[1.0, 2.0, 0.5, 0.25, 0.125])),
        ("zero", "A term of 0 counts as a millionth; a weight of 0 leaves one out.",
         dict(terms=array("0.5 0 0.125 0 0.375")[0], weights=[1.0, 2.0, 0.0, 0.0, 0.125])),
    ],
    "retrieval.best_fit": [
        ("", "The highest L; empty and full masks are passed over for their areas.",
         dict(R=R, proposals=PROPOSALS, N=N, Q=Q, objectness=OBJECTNESS, weights=FIT, width=3)),
        ("tie", "Of equal L the first wins.",
         dict(R=R, proposals=PROPOSALS[[2, 0, 0]], N=N, Q=Q, objectness=OBJECTNESS[[2, 0, 0]], weights=FIT, width=3)),
        ("seed", "Only proposals with the strongest pixel of R: of these the highest objectness, WISE's assignment.",
         dict(R=R, proposals=PROPOSALS[:3], N=N, Q=Q, objectness=OBJECTNESS[:3], weights=[0.0, 0.0, 1.0, 0.0, 0.0],
              seed_pixel="require")),
        ("seed_nowhere", "None holds it: index -1, the rest zero.",
         dict(R=R, proposals=PROPOSALS[2:4], N=N, Q=Q, objectness=OBJECTNESS[2:4], weights=FIT,
              seed_pixel="require")),
        ("seed_preferred", "None holds it: then all are candidates.",
         dict(R=R, proposals=PROPOSALS[2:4], N=N, Q=Q, objectness=OBJECTNESS[2:4], weights=FIT,
              seed_pixel="prefer")),
        ("no_pixel", "A proposal that has no pixel at the size of R is passed over; other limits; smoothed.",
         dict(R=R, proposals=SMALL, N=N, Q=Q, objectness=OBJECTNESS[:2], weights=FIT, area=[0.0, 1.5], smooth=0.25)),
    ],
    "retrieval.confident_score": [
        ("", "The confidence times exp(L / sum of weights).",
         dict(confidence=0.75, L=-2.0, weights=[1.0, 0.0, 2.0, 0.5, 0.5])),
    ],
    "retrieval.nms": [
        ("across_classes", "IoU at the threshold suppresses; equal scores go by class, row, column; PRMs merge.",
         dict(**INSTANCES, threshold=0.5)),
        ("per_class", "Only within a class.", dict(**INSTANCES, threshold=0.5, per_class=True)),
        ("nested", "Half of the smaller mask inside the other is enough.",
         dict(**INSTANCES, threshold=0.75, nested=0.5)),
        ("again", "Instances of one label and peak are one peak's choices: the best that nobody drops is kept.",
         dict(**INSTANCES | {"labels": INSTANCES["labels"] * 0, "peaks": INSTANCES["peaks"] // 4 * 4}, threshold=0.5,
              again=True)),
        ("low_threshold", "A dropped instance drops nobody; its PRM goes to the first kept one that overlaps.",
         dict(**INSTANCES, threshold=0.25)),
    ],
    "retrieval.segment": [
        ("", "Algorithm 1 as a whole.",
         dict(network="small", image=IMAGE, proposals=SCENE, alpha=0.75, beta=0.0078125, bias=0.95, t_class=0.5,
              t_peak=0.25, width=3, nms_threshold=0.5)),
        ("exclusive_groups", "Classes that are groups and exclude each other, the most probable one.",
         dict(network="small", image=IMAGE, proposals=SCENE, alpha=0.75, beta=0.0078125, bias=0.95, t_class=0.125,
              t_peak=0.25, width=3, nms_threshold=0.5, groups=[[0, 1], [2]], exclusive=True,
              image_threshold=0.00390625, top=1)),
        ("again", "A peak whose proposal is dropped chooses again.",
         dict(network="small", image=IMAGE, proposals=SCENE, alpha=0.75, beta=0.0078125, bias=0.95, t_class=0.125,
              t_peak=0.0, width=3, nms_threshold=0.5, nms_nested=0.5, choose_again=True,
              min_score=0.125)),
        ("views", "Maps and PRMs averaged over four turned views, and these of the image at another size.",
         dict(network="small", image=IMAGE, proposals=SCENE, alpha=0.75, beta=0.0078125, bias=0.95, t_class=0.125,
              t_peak=0.25, width=3, nms_threshold=0.5, upsample=2, views=4, scaled=[IMAGE[:, :6, 1:7]])),
        ("fit", "The second choice.",
         dict(network="small", image=IMAGE, proposals=SCENE, bias=0.95, t_class=0.5, t_peak=0.25, width=3,
              nms_threshold=0.5, choice="fit", weights=FIT, objectness=OBJECTNESS, seed_pixel="prefer", smooth=0.125)),
    ],
}  # fmt: skip
