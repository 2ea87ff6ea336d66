"""Where the proposals of a data set's pictures come from: files, or the generator."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prm.accelerated.retrieval import Proposals

from .cache import proposals_for
from .grouping import VERSION as GENERATOR
from .grouping import rated
from .reading import Reader, open_proposals


@dataclass(frozen=True)
class Source:
    """Where a picture's proposals come from: files at `path` (see `open_proposals`), or else generated here.

    limit: at most so many of a picture. cache: where generated ones are kept.
    """

    path: Path | None = None
    limit: int = 1000
    cache: Path | None = None

    def __call__(self) -> Callable:
        """The function from a sample to its proposals; InputError where `path` cannot be opened."""
        if self.path is None:
            return lambda sample: proposals_for(sample.image, self.cache, self.limit)
        reader = open_proposals(self.path, limit=self.limit)
        return lambda sample: read_rated(reader, sample.name, sample.image)

    def description(self) -> dict:
        made = {"generator": GENERATOR} if self.path is None else {"files": str(self.path)}
        return made | {"limit": self.limit}


def read_rated(reader: Reader, name: str, image: np.ndarray) -> Proposals:
    """A picture's proposals from a file, with an objectness; see `grouping.rated`."""
    proposals, scores = reader(name, image.shape[:2])
    return rated(image, proposals, scores)
