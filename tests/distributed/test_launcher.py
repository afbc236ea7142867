"""What the launch script tells a process."""

from pathlib import Path

import pytest

from pipeline.backbone.config import BackboneConfig
from pipeline.distributed.launcher import local_copy


def test_a_copy_on_the_node_is_read_in_the_place_of_the_shared_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, local = tmp_path / "shared", tmp_path / "local"
    shared.mkdir()
    config = BackboneConfig(name_or_path=str(shared))
    assert config.location == str(shared)
    monkeypatch.setenv("LTUNE_LOCAL", str(local))
    assert config.location == str(shared), "nothing was copied"
    (local / shared.relative_to("/")).mkdir(parents=True)
    assert config.location == str(local / shared.relative_to("/")) and config.name_or_path == str(shared)
    assert local_copy("org/model") == "org/model", "a hub model is none of the folders"
