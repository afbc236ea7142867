"""The code of docs/python.md runs as it stands, but on a tiny backbone and for fewer steps.

covers classifier/__init__
"""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import LTuningClassifier
from pipeline.engine.startup import leave
from tests.support.tiny import save_tiny

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "python.md").read_text()


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave()
    shutil.copytree(REPOSITORY / "pipeline" / "data" / "embedded", tmp_path / "pipeline" / "data" / "embedded")
    monkeypatch.chdir(tmp_path)
    backbone = save_tiny(tmp_path / "backbone", "llama_gqa")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    assert code.count("LTuningClassifier(") == 2 and "max_steps=60" in code
    code = code.replace("LTuningClassifier(", f"LTuningClassifier({str(backbone)!r}, ").replace("=60", "=2")
    names: dict[str, Any] = {}
    exec(code, names)
    assert isinstance(names["classifier"], LTuningClassifier) and len(names["classifier"].classes_) == 8
    assert names["search"].best_params_["method"] == "probe"
    assert (tmp_path / "town_hall" / "adapter_config.json").is_file()


def test_the_table_lists_the_parameters_with_their_keys() -> None:
    listed = " ".join(re.findall(r"^\| (`[^|]+)\|", PAGE, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", listed)) == set(LTuningClassifier().get_params())
