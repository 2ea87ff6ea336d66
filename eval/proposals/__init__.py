"""Segment proposals: made here (`grouping`), kept on disk (`cache`), or read from files (`authors_json`)."""
