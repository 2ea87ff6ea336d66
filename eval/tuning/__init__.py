"""Choosing the settings of Algorithm 1 on pictures that are kept for it."""
