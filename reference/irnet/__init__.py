"""IRNet (Ahn et al., CVPR 2019): instances from class maps, by displacements to centres and by boundaries, in float64.

`label_synthesis` merges class maps, makes seed labels of them with `dense_crf`, and in the end instances; `heads` makes
displacements and boundaries of a backbone's features; `pixel_pairs` holds what both learn from, pairs of pixels, and
the losses; `centroids` follows the displacements; `random_walk` spreads class maps as far as boundaries let them.
Positions, offsets and vectors are (row, column).
"""
