"""Segment proposals: made here (`grouping`), kept on disk (`cache`), or read from files (`reading`, `formats`)."""

from .cache import proposals_for
from .grouping import rated
from .reading import open_proposals
from .source import Source, read_rated

__all__ = ["Source", "open_proposals", "proposals_for", "rated", "read_rated"]
