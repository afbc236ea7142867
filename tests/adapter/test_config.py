"""adapter_config.json of earlier versions: read where their meaning is certain."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapter.directory import load_adapter
from pipeline.config import parse_config
from pipeline.core.checksums import SUMS
from pipeline.core.errors import UserError
from pipeline.methods import METHOD_NAMES
from tests.support.tiny_adapter import some_config


def with_method(folder: Path, method: dict[str, Any], version: int) -> Path:
    """The adapter with another config, which its checksums do not know."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": version, "method": method}))
    (folder / SUMS).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_version_1_with_todays_keys_is_version_2(folder: Path, name: str) -> None:
    method = some_config().model_copy(update={"method": parse_method(name)}).method.model_dump(mode="json")
    configs = [load_adapter(with_method(folder, method, version)).config for version in (1, 2)]
    assert configs[0] == configs[1] and configs[0].version == 2 and configs[0].method.name == name


def parse_method(name: str) -> Any:
    values = {"run": {"dir": "x"}, "backbone": {"name_or_path": "x"}, "data": {"train": "x"}, "method": {"name": name}}
    return parse_config(values).method


EARLY = {"head": "label_aware", "bias": False, "dropout": 0.0}
"""Keys that label tuning had before there was a shortlist."""
SCORES = EARLY | {"name": "lt_prefix", "pooling": "scores", "rank": None, "init_std": 0.02}


def test_version_1_without_a_shortlist_is_read_with_every_label_where_that_is_certain(folder: Path) -> None:
    for method in (
        EARLY | {"name": "lt_prompt", "init_std": None},
        SCORES | {"pooling": "tokens"},
    ):
        config = load_adapter(with_method(folder, method, 1)).config
        assert config.method.model_dump()["shortlist"] is None and config.method.joint_readings(77) is None
    config = load_adapter(with_method(folder, SCORES | {"shortlist": 4}, 1)).config
    assert config.method.joint_readings(77) == 4, "the bias, which was off, is left out"


def test_an_adapter_from_before_there_was_a_start_has_a_random_one(folder: Path) -> None:
    method = {key: value for key, value in some_config().method.model_dump(mode="json").items() if key != "start"}
    for name in ("lt_prefix", "lt_prompt"):
        kept = {key: value for key, value in method.items() if key not in ("pooling", "rank") or name == "lt_prefix"}
        found = load_adapter(with_method(folder, kept | {"name": name}, 2)).config.method
        assert found.name == name and found.starts_from is None


@pytest.mark.parametrize(
    "method",
    [SCORES, SCORES | {"pooling": "softmax"}, SCORES | {"shortlist": 4, "bias": True}],
    ids=["scores", "softmax", "bias"],
)
def test_version_1_of_two_meanings_is_refused(folder: Path, method: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"adapter_config\.json' has an early form of format version 1.*: train again"):
        load_adapter(with_method(folder, method, 1))
    with pytest.raises(UserError, match="is damaged"):
        load_adapter(with_method(folder, method | {"bias": True}, 2))
