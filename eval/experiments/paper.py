"""What the paper printed, in percent: Tables 1 to 6, Figure 6 (Zhou et al., CVPR 2018, section 4), WISE's poster."""

from ..judging.answers import ABLATED
from ..judging.record import ANSWER

PAPER_1 = {
    "DeepMIL": (74.5, 41.2), "WSLoc": (79.7, 49.2), "WILDCAT": (82.9, 53.5), "SPN": (82.9, 55.3),
    "without peak stimulation": (81.5, 53.1), "full approach": (85.5, 57.5),
}  # fmt: skip
PAPER_2 = {"average": 55.7, "max": 60.9, "wildcat": 62.4, "peak": 64.0}
PAPER_3 = {
    "MIL+ILP+SP-seg": 42.0, "WILDCAT (CRF)": 43.7, "SEC (CRF)": 50.7, "Check mask (CRF, human)": 51.5,
    "Combining (CRF)": 52.8, "PRM": 53.4,
}  # fmt: skip
PAPER_4 = {
    "ground truth: rectangle": (78.3, 30.2, 4.5, 47.4), "ground truth: ellipse": (81.6, 41.1, 6.6, 51.9),
    "ground truth: proposals": (69.7, 38.0, 12.3, 53.3), "MELM: rectangle": (36.0, 14.6, 1.9, 26.4),
    "MELM: ellipse": (36.8, 19.3, 2.4, 27.5), "MELM: proposals": (36.9, 22.9, 8.4, 32.9),
    "CAM: rectangle": (18.7, 2.5, 0.1, 18.9), "CAM: ellipse": (22.8, 3.9, 0.1, 20.8),
    "CAM: proposals": (20.4, 7.8, 2.5, 23.0), "SPN: rectangle": (29.2, 5.2, 0.3, 23.0),
    "SPN: ellipse": (32.0, 6.1, 0.3, 24.0), "SPN: proposals": (26.4, 12.7, 4.4, 27.1),
    ANSWER: (44.3, 26.8, 9.0, 37.6),
}  # fmt: skip
WITHOUT_PEAKS = "prm: without peak stimulation"
PAPER_5 = dict(zip((ANSWER, WITHOUT_PEAKS, *ABLATED), ((26.8, 22.0), (22.8, 11.9), (13.3,), (24.3,), (16.5,))))
PAPER_6 = {  # columns: GT mask, GT box, SPN, PRM
    "proposals": (26.0, 12.3, 4.4, 9.0), "proposals and truth": (100.0, 29.2, 10.4, 26.9),
    "truth": (100.0, 93.0, 50.0, 73.3),
}  # fmt: skip
PAPER_FIGURE_6 = {"1": 78.0, "2-5": 67.0, "6 and more": "above the background"}
WISE = {  # WISE's poster: mAP at 0.25, 0.5, 0.75, and ABO
    "sampled labels": (48.5, 40.4, 22.2, 51.3), "sampled labels, refined": (49.2, 41.7, 23.7, 55.2),
    "masks": (58.9, 51.4, 32.4, None),
}  # fmt: skip
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
WISE_POSTER = {  # AP^r at 0.5 for each VOC class, and their mean
    "Mask R-CNN (masks)": (71.2, 0.3, 72.2, 53.2, 29.8, 68.7, 47.3, 77.1, 13.3, 54.7, 41.0, 65.5, 51.5, 69.6, 57.8,
                           31.0, 46.9, 45.6, 69.7, 61.4, 51.4),
    "WISE": (59.2, 0.6, 62.6, 38.6, 18.8, 57.3, 31.7, 66.9, 8.3, 40.5, 11.0, 55.5, 48.7, 60.2, 34.4, 24.4, 38.3, 33.1,
             61.7, 56.9, 40.4),
    "WISE+Refine": (63.2, 0.3, 60.7, 39.1, 21.0, 59.4, 31.9, 68.6, 9.2, 43.1, 15.6, 58.0, 48.6, 62.3, 36.4, 21.9, 38.8,
                    34.3, 65.5, 56.9, 41.7),
}  # fmt: skip
