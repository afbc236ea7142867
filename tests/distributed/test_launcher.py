"""What the launch script tells a process, and what another program has left in its environment."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.backbone.config import BackboneConfig
from pipeline.core.errors import UserError
from pipeline.distributed.launcher import UNSET, VARIABLES, check_launcher, joining, local_copy, rank, world_size

TWO = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def surround(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Only these of a launcher's variables."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def but(*missing: str, **changed: str) -> dict[str, str]:
    return {name: value for name, value in (TWO | changed).items() if name not in missing}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "abc"}, "RANK is 'abc', not a number from 0 to 999,999"),
        ({"RANK": ""}, "RANK is '', not a number"),
        ({"RANK": "9" * 5000}, "RANK is '99999999999999999999', not a number"),
        ({"RANK": "1"}, "RANK is 1, and WORLD_SIZE is not set"),
        ({"RANK": "-1", "WORLD_SIZE": "1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not a number from 1"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE is '²'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, and RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"),
        (but("MASTER_ADDR"), "WORLD_SIZE is 2, and MASTER_ADDR not set"),
        (but("LOCAL_RANK"), "WORLD_SIZE is 2, and LOCAL_RANK not set"),
        (but(RANK="2"), "RANK is 2, and WORLD_SIZE is 2"),
        (but(LOCAL_RANK="-1"), "LOCAL_RANK is '-1'"),
        (but(MASTER_PORT="tcp://10.0.0.1:6379"), "MASTER_PORT is 'tcp://10.0.0.1:6379', not a number from 1 to 65,535"),
    ],
)
def test_what_no_launcher_says_is_refused(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    surround(monkeypatch, variables)
    with pytest.raises(UserError) as refused:
        check_launcher()
    assert f"the variable {words}" in str(refused.value) and str(refused.value).endswith(UNSET)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "0", "LOCAL_RANK": "-1", "MASTER_PORT": "x"}, (0, 1)),
        (TWO, (1, 2)),
    ],
)
def test_what_a_launcher_says_is_taken(
    variables: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    surround(monkeypatch, variables)
    check_launcher()
    assert (rank(), world_size()) == expected


def test_a_rank_that_waits_says_so_and_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    said = threading.Event()
    monkeypatch.setattr(
        "pipeline.distributed.launcher.log.warning", lambda *words: (said.set(), messages.append(words))
    )
    messages: list[tuple[str, ...]] = []
    surround(monkeypatch, TWO)
    with joining(silent_seconds=0.01):
        assert said.wait(60)
    message = messages[0][0] % messages[0][1:]
    assert message.startswith("rank 1 of 2 at 127.0.0.1:29500 (variables RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)")
    assert "waits for the others" in message and message.endswith(UNSET)


def test_ranks_that_do_not_meet_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store that the process group begins with, for real: nobody else comes."""
    surround(monkeypatch, TWO)
    with (
        pytest.raises(UserError, match=r"^rank 1 of 2 at .* does not meet the others \(.*timed out.*unset RANK"),
        joining(),
    ):
        dist.TCPStore("127.0.0.1", 1, 2, is_master=False, timeout=timedelta(milliseconds=500))


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
