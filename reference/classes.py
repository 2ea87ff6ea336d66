"""Classes that are groups of a network's, and networks whose classes exclude each other (not in the paper).

A network of ImageNet tells 118 breeds of dog apart: where they are one class, its map is the maximum of its members'.
Its probability is the softmax over all of the network's classes at its strongest peak, summed over the members, since
a network that was trained by a softmax says nothing by a sigmoid.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, softmax


def group_maps(M, groups) -> np.ndarray:
    """(G, h, w): at every position the largest response of each group's members; M (C, h, w), groups of indices."""
    M = np.asarray(M, np.float64)
    return np.stack([M[list(members)].max(axis=0) for members in groups])


def first_member(M, members, position) -> int:
    """The member with the largest response at a position (row, column) of M (C, h, w), the lowest of equal ones: where
    the walk back starts."""
    row, column = position
    return max(sorted(members), key=lambda c: M[c, row, column])


def exclusive_score(M, members, position) -> float:
    """Log odds of a group at a position of M (C, h, w): their sigmoid is the sum of the members' softmax over all C.

    Infinite for a group of all classes.
    """
    values = np.asarray(M, np.float64)[:, position[0], position[1]]
    others = np.delete(values, list(members))
    return float(logsumexp(values[list(members)]) - (logsumexp(others) if len(others) else -np.inf))


def presence(M, members) -> float:
    """Probability of a group's most probable member in the picture: of the softmax over all classes of their mean
    response, as a network with exclusive classes is trained; M (C, h, w). A sum would grow with the group."""
    return float(softmax(np.asarray(M, np.float64).mean(axis=(1, 2)))[list(members)].max())


def most_probable(chosen, scores, top=None) -> list[int]:
    """Of the chosen classes the `top` with the highest scores, the first of equal ones; rising. None: all of them."""
    return sorted(sorted(chosen, key=lambda c: -scores[c])[:top])
