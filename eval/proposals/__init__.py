"""Segment proposals: made here (`grouping`), kept on disk (`cache`), or read from files (`authors_json`)."""

from .cache import proposals_for

__all__ = ["proposals_for"]
