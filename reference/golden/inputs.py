"""Arrays as the cases write them down: nothing in them is random."""

import numpy as np

Cases = dict[str, list[tuple[str, str, dict]]]  # function -> (name, the edge covered, arguments by name) of each case


def numbers(seed, *shape, low=-16, high=16) -> np.ndarray:
    """Multiples of 1/8 (exact in every floating dtype) from low / 8 to high / 8, by a generator that never changes."""
    values, state = [], seed
    for _ in range(int(np.prod(shape))):
        state = (1103515245 * state + 12345) % 2**31
        values.append(low + (state >> 16) % (high - low + 1))
    return np.array(values, np.float64).reshape(shape) / 8


def visits(seed, *shape) -> np.ndarray:
    """P(V): multiples of 1/8 in [0, 1]."""
    return numbers(seed, *shape, low=0, high=8)


def array(text) -> np.ndarray:
    """Rows apart by "/", numbers by spaces -> (rows, columns)."""
    return np.array([[float(number) for number in row.split()] for row in text.split("/")])


def mask(text) -> np.ndarray:
    """Rows apart by spaces, "#" for True -> bool (rows, columns)."""
    return np.array([[pixel == "#" for pixel in row] for row in text.split()])


def stack(*maps):
    """Maps (H, W) -> M (1, C, H, W)."""
    return np.array(maps)[None]


UNEVEN = array("0 1 0.5 / 2 0.25 0 / 0.5 3 1.25")
