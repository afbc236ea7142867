"""The hub's real client against a stand-in of the hub on loopback.

covers adapter/hub, cli/hand_over
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapter.hub import is_hub_name
from pipeline.core.errors import UserError
from pipeline.engine.loaded_adapter import LoadedAdapter
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.tiny_run import tiny_run

TOKEN = "hf_loopback"
SCRIPT = """
import sys
from pathlib import Path
from pipeline.cli import main
adapter, exported, out = sys.argv[1:4]
assert main(["push", "--adapter", adapter, "org/tiny", "--private"]) == 0
assert main(["push", "--run-dir", adapter, "org/tiny", "--revision", "v1"]) == 0
Path(adapter, "calibration.json").unlink()
assert main(["push", "--adapter", adapter, "org/tiny"]) == 0
assert main(["push", "--adapter", exported, "org/labels"]) == 0
from pipeline import LTuningClassifier
found = [LTuningClassifier.from_pretrained(name, "cpu") for name in ("org/tiny", "org/tiny@v1", "org/labels@main")]
print([classifier.details(["a goal"])[0].scores for classifier in found])
LTuningClassifier.from_pretrained("org/tiny@v1", "cpu", calibrated=True)
Path(out, "in.txt").write_text("a goal\\n")
assert main(["predict", "--adapter", "org/tiny@v1", "--input", f"{out}/in.txt", "--output", f"{out}/out.jsonl"]) == 0
for name in ("org/none", "org/tiny@v9", "org/other"):
    assert main(["predict", "--adapter", name, "--input", f"{out}/in.txt"]) == 2
assert main(["push", "--adapter", out, "org/tiny"]) == 2
import os, huggingface_hub.utils
os.environ["HF_TOKEN"] = "hf_wrong"
assert main(["push", "--adapter", adapter, "org/tiny"]) == 2
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The hub after a session of a real client, what that said, and the adapter's folder."""
    folder = tmp_path_factory.mktemp("hub")
    config = tiny_run(folder)
    exported = folder / "exported"
    from pipeline.stages.export import export

    export(config.run_dir.adapter, exported)
    (config.run_dir.adapter / "calibration.json").write_text('{"temperature": 2.0, "texts": 6}')
    (config.run_dir.adapter / "notes.pkl").write_bytes(b"no")
    with fake_hub(TOKEN) as (address, found):
        found.repositories["org/other"] = {}
        found.commit("org/other", "main", {"adapter_config.json": b'{"peft_type": "LORA"}', "run.py": b"print(1)"})
        variables = {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}
        variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, "-c", SCRIPT, str(config.run_dir.adapter), str(exported), str(folder)]
        ended = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr[-3000:]
        yield found, ended, folder


def test_an_adapter_comes_back_as_it_went(hub: tuple[FakeHub, Any, Path]) -> None:
    _, ended, folder = hub
    expected = LoadedAdapter.load(folder / "run", "cpu").predict(["a goal"])[0].scores
    assert eval(ended.stdout.strip().splitlines()[-1]) == [expected] * 3
    assert '"label"' in (folder / "out.jsonl").read_text()


def test_only_safetensors_json_and_the_card_travel(hub: tuple[FakeHub, Any, Path]) -> None:
    found, _, folder = hub
    files = found.files("org/tiny", "v1")
    assert files is not None and found.private == {"org/tiny"}
    adapter = folder / "run" / "adapter"
    assert files.keys() - {".gitattributes"} == {
        "adapter.safetensors",
        "adapter_config.json",
        "label_states.safetensors",
        "labels.json",
        "calibration.json",
        "README.md",
        "SHA256SUMS",
    }
    assert files["adapter.safetensors"] == (adapter / "adapter.safetensors").read_bytes()
    assert b'from_pretrained("org/tiny")' in files["README.md"] and b"## Results" in files["README.md"]
    main = found.files("org/tiny", "main")
    assert main is not None and "calibration.json" not in main, "what is not there any more goes"
    assert not any(name.endswith((".py", ".pkl", ".gitattributes")) for name in found.fetched)


def test_what_is_wrong_is_one_line(hub: tuple[FakeHub, Any, Path]) -> None:
    errors = [line for line in hub[1].stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5, errors
    for line, part in zip(
        errors,
        (
            "there is no folder 'org/none', and the hub",
            "org/tiny@v9",
            "'org/other' on the hub is not an adapter",
            "is not an adapter directory",
            "cannot push to 'org/tiny': log in with `hf auth login`",
        ),
        strict=True,
    ):
        assert part in line


def test_names_of_the_hub_are_told_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert is_hub_name("org/name") and is_hub_name("org/name@v1.0") and is_hub_name(Path("org/name@abc"))
    for name in ("runs/mine", "none", "/abs/path", "./org/name", "a/b/c", "../x", "org/name@", "-/x"):
        assert not is_hub_name(name)
    with pytest.raises(UserError, match=r"there is no such folder.*ORG/NAME@REVISION"):
        LoadedAdapter.load("runs/typo")
