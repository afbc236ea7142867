"""An adapter that is replaced while it is read.

covers adapter/directory
"""

import os
import shutil
import sys
from pathlib import Path
from subprocess import Popen

import pytest
import torch

from pipeline.adapter.directory import adapter_fingerprint, adapter_folder, load_adapter, save_adapter
from pipeline.adapter.label_states import LabelStates
from pipeline.core.checksums import read_whole
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_dir
from pipeline.evaluation.calibration import Calibration, keep_calibration
from tests.support.tiny_adapter import LABELS, some_config

WRITER = """
import os, sys
from pathlib import Path
from pipeline.adapter.directory import load_adapter, write_card
from tests.adapter.test_replaced import numbered_adapter
folder, count = Path(sys.argv[1]), int(sys.argv[2])
os.fsync = lambda descriptor: None  # so that it is faster than the reader
for number in range(1, count + 1):
    numbered_adapter(folder, number)
    write_card(folder, load_adapter(folder), {})  # as evaluate does it
(folder.parent / "ended").touch()
"""


def numbered_adapter(folder: Path, number: int) -> None:
    """Puts a calibrated adapter into the folder's place, all of whose files depend on a number."""
    labels = LabelStates(
        names=[f"first {number}", "second"],
        hypotheses=LABELS.hypotheses,
        states=torch.full_like(LABELS.states, number),
        mask=LABELS.mask,
        fingerprint=LABELS.fingerprint | {"number": str(number)},
    )
    config = some_config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"max_length": number + 2})})
    state, made = {"weight": torch.full((1000,), float(number))}, folder.with_name("made")
    save_adapter(made, state, config.adapter_config(), labels, summary={"number": number})
    keep_calibration(made, Calibration(temperature=1 + number / 1000, texts=5))
    with atomic_dir(folder, sums=True) as temporary:
        shutil.copytree(made, temporary, dirs_exist_ok=True)


def test_a_load_sees_one_whole_adapter_while_others_take_its_place(tmp_path: Path) -> None:
    folder, count = tmp_path / "adapter", 40
    numbered_adapter(folder, 0)
    (tmp_path / "config.yaml").touch()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2])])}
    seen, prints = [], set()
    with Popen([sys.executable, "-c", WRITER, str(folder), str(count)], env=environment) as writer:
        try:
            while not (tmp_path / "ended").exists() and writer.poll() is None:
                adapter = load_adapter(adapter_folder((folder, tmp_path)[len(seen) % 2]), calibrated=True)
                number = int(adapter.labels.fingerprint["number"])
                assert adapter.labels.names[0] == f"first {number}"
                assert adapter.config.data.max_length == number + 2 and adapter.temperature == 1 + number / 1000
                assert bool((adapter.labels.states == number).all())
                assert bool((adapter.method_state["weight"] == number).all())
                seen.append(number)
                prints.add(adapter_fingerprint(folder))
        finally:
            assert writer.wait() == 0
    assert seen == sorted(seen) and len(set(seen)) > count // 20
    assert len(prints) <= count + 1, "only whole adapters have a fingerprint"


def test_a_folder_that_never_rests_is_an_error(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")

    def exchange(path: Path) -> None:
        path.rename(tmp_path / "aside")
        other.rename(path)
        (tmp_path / "aside").rename(other)

    with pytest.raises(UserError, match="was replaced 200 times while it was read"):
        read_whole(folder, exchange)
