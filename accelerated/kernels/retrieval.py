"""Kernels of retrieval (Eq. 6)."""
