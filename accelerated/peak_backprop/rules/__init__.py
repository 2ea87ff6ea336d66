"""Eqs. 4-5, a layer kind at a time: a rule knows which inputs P goes to, what to keep, and how P goes back."""

from .convolution import AveragePooling, Convolution, Ratio, Sliding
from .custom import Registered, register_rule, registered
from .joining import Addition, Concatenation, Summation
from .linear import FixedWeights, Linear
from .moving import Expansion, FoldedNorm, GatedUnit, Norm, Padding, Reshape, Scaling, Selection
from .pooling import MaxPool
from .rule import Rule

__all__ = [
    "Addition", "AveragePooling", "Concatenation", "Convolution", "Expansion", "FixedWeights", "FoldedNorm",
    "GatedUnit", "Linear", "MaxPool", "Norm", "Padding", "Ratio", "Registered", "Reshape", "Rule", "Scaling",
    "Selection", "Sliding", "Summation", "register_rule", "registered",
]  # fmt: skip
