"""Of every test."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quick_garbage_collection() -> Iterator[None]:
    """Accelerate and DeepSpeed collect garbage in every stage: a second each time, through all that is imported here.

    What a test leaves alive is taken out of the collector's sight, garbage is not.
    """
    yield
    gc.collect()
    gc.freeze()
