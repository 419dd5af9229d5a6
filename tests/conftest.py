"""What every test can rely on: fixed seeds, one thread, and a default dtype that nobody changed."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

torch.set_num_threads(1)  # the tensors are small: a second thread mostly waits for the first


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Each test starts from one seed and leaves torch's default dtype and grad mode as they were."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    before = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    after = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_default_dtype(before[0])
    torch.set_grad_enabled(before[1])
    assert after == before, f"the test changed torch's default dtype or grad mode: {before} -> {after}"
