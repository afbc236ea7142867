"""The frozen backbone with every parameter partitioned by ZeRO-3, on two ranks.

covers backbone/frozen
"""

from pathlib import Path

from tests.support.worlds import run_worlds


def test_partitioned_equals_plain(tmp_path: Path) -> None:
    """Same loss and gradient; after backward no parameter of the backbone stays gathered."""
    results = run_worlds("tests.support.partitioned:compare_all", [2], tmp_path, timeout_seconds=300)
    for figures in results[2]:
        assert not {case: seen for case, seen in figures.items() if not all(value <= 1e-5 for value in seen.values())}
