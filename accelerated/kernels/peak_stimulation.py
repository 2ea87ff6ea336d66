"""Kernels of peak pooling (Eqs. 1-3)."""
