"""What is imported with the collector at rest is none of its business afterwards."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.core.imports import quick_imports, without_compiler


@pytest.fixture(autouse=True)
def _collector_as_before() -> None:
    gc.enable()


def test_what_is_imported_is_kept_from_the_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ltune_test_imported.py").write_text("values = [[n] for n in range(5000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    frozen = gc.get_freeze_count()
    with quick_imports():
        import ltune_test_imported

        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() > frozen + 4000
    assert len(ltune_test_imported.values) == 5000


def test_without_an_import_nothing_is_kept() -> None:
    made, frozen = [[n] for n in range(5000)], gc.get_freeze_count()
    with quick_imports():
        import json  # noqa: F401 (there already)
    # Fewer than before, where what was kept has ended meanwhile.
    assert gc.isenabled() and gc.get_freeze_count() < frozen + len(made)


def test_a_collector_at_rest_stays_so_and_a_failed_import_wakes_it() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import ltune_no_such_module  # noqa: F401
    assert gc.isenabled()
    gc.disable()
    with quick_imports():
        pass
    assert not gc.isenabled()
    gc.enable()


@pytest.mark.parametrize("asked", [None, "0", "1"])
def test_without_the_compiler_functions_stay_as_they_are(asked: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    if asked is not None:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", asked)

    def double(number: int) -> int:
        return 2 * number

    with without_compiler():
        assert torch.compile(double) is double
    with pytest.raises(ModuleNotFoundError), without_compiler():
        import ltune_no_such_module  # noqa: F401
    assert os.environ.get("TORCHDYNAMO_DISABLE") == asked


def test_after_it_functions_are_compiled_as_before() -> None:
    code = (
        "from pipeline.core.imports import without_compiler\n"
        "with without_compiler():\n"
        "    import bitsandbytes, peft.tuners.lora.layer\n"
        "import torch\n"
        "seen = []\n"
        "torch.compile(lambda x: x + 1, backend=lambda graph, _: seen.append(graph) or graph.forward)(torch.ones(2))\n"
        "print(len(seen))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "1"
