"""Speed of a precision on this machine, and the line that tells of a slow one."""

import time
from typing import Literal

import pytest
import torch

from minillm.models import causal_lm
from minillm.models.causal_lm import SLOW_BFLOAT16, bfloat16_is_slow, dtype_of


def seconds(precision: Literal["float32", "bfloat16"]) -> float:
    """Return the least CPU time of several matrix products, so that other processes do not count."""
    square = torch.ones(512, 512, dtype=dtype_of(precision))
    taken = []
    for _ in range(5):
        began = time.thread_time()
        _ = square @ square
        taken.append(time.thread_time() - began)
    return min(taken)


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the CPU, and here is a GPU")
def test_bfloat16_is_called_slow_exactly_where_its_products_are():
    assert bfloat16_is_slow() == (seconds("bfloat16") > 2.5 * seconds("float32"))


def test_a_process_says_once_that_bfloat16_is_slow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    causal_lm._say_once.cache_clear()
    monkeypatch.setattr(causal_lm, "bfloat16_is_slow", lambda: True)
    types = [dtype_of("float32"), dtype_of("bfloat16"), dtype_of("bfloat16")]
    assert types == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert capsys.readouterr().out == f"{SLOW_BFLOAT16}\n"
