"""Kernels of the walk back (Eqs. 4-5)."""
