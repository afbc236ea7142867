"""Names that become folders, and paths that artefacts name, lead nowhere else. Covers paths, and all who ask it.

covers comparison/config, data/splits
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.weights import INDEX, WEIGHTS, open_checkpoint
from pipeline.comparison.config import cell_config, groups, load_comparison, settings
from pipeline.core.checksums import SUMS, check_sums, write_sums
from pipeline.core.errors import UserError
from pipeline.core.paths import expanded, home_expanded, inside, is_plain_name
from pipeline.core.yaml import dump_yaml
from pipeline.data.splits import load_split
from pipeline.training.checkpoint import STATE, read_checkpoint, write_checkpoint
from pipeline.training.optimizer_state import MOMENTS, OptimizerState
from pipeline.training.run_state import Best, LogPosition, RunState
from tests.support.tiny import save_tiny

LEADING_OUT = ["../x", "a/../../x", "/etc/passwd", "..", "a/..", "", ".", "../"]
NOT_PLAIN = [*LEADING_OUT, "a/b", "a\\b", ".hidden", " a", "a\n", "a\0b", "\x1b[2J", "a\u202eb", "ä" * 101]


@pytest.mark.parametrize("name", [*NOT_PLAIN, 7, None], ids=ascii)
def test_names_that_are_not_plain(name: object) -> None:
    assert not is_plain_name(name)


@pytest.mark.parametrize("name", ["sst2", "Banking 77", "电影", "a.b-c_d=1e-05", "ä" * 100, "a..b"], ids=ascii)
def test_names_that_are_plain(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "a/..", "", ".", "a\0b"])
def test_paths_that_lead_out(name: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        inside(Path("folder"), name)
    assert inside(Path("folder"), "train/data.arrow") == Path("folder/train/data.arrow")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("$STORE/a b.csv", "/store/a b.csv"),
        ("${STORE}2/$STORE", "/store2//store"),
        ("a~/~b", "a~/~b"),
        ("./~/x", "./~/x"),
        ("cost$5$.csv", "cost$5$.csv"),
        ("hub:org/name:train", "hub:org/name:train"),
    ],
)
def test_home_and_variables_in_paths(given: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("STORE", "/store")
    assert expanded(given) == path and expanded(path) == path
    assert home_expanded(given) == (path if given.startswith("~") else given)


@pytest.mark.parametrize("path", ["$NOWHERE/x", "a/${NOWHERE}", "${}", "$EMPTY/x", "~no-such-user-here/x"])
def test_what_means_nothing_in_a_path_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ValueError, match=r"is not set|no home folder"):
        expanded(path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", "llama_gqa")


def config_of(path: Path) -> BackboneConfig:
    return BackboneConfig(name_or_path=str(path), dtype="float32")


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "ABSOLUTE", "link/elsewhere.safetensors", 3, ["x"]])
def test_an_index_names_files_beside_it(model: Path, name: object) -> None:
    elsewhere = model.parent / "elsewhere.safetensors"
    (model / WEIGHTS).rename(elsewhere)
    (model / "link").symlink_to(model.parent)
    name = str(elsewhere) if name == "ABSOLUTE" else name
    (model / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(elsewhere), name)}))
    with pytest.raises(UserError, match=r"index\.json: names the file .* not beside it"):
        open_checkpoint(config_of(model))


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"weight_map": 3}', '{"weight_map": [1]}'])
def test_an_index_that_is_none_is_one_line(model: Path, content: str) -> None:
    (model / WEIGHTS).unlink()
    (model / INDEX).write_text(content)
    with pytest.raises(UserError, match="not a safetensors index"):
        open_checkpoint(config_of(model))


def test_the_layout_of_the_hub_cache_works(model: Path, tmp_path: Path) -> None:
    """A snapshot's files are links to ../../blobs/HASH."""
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_sums(model)
    for file in model.iterdir():
        blob = blobs / hashlib.sha256(file.name.encode()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs", blob.name))
    assert open_checkpoint(config_of(snapshot)).tensors.keys() == load_file(model / WEIGHTS).keys()
    check_sums(snapshot)


def test_a_header_may_not_declare_more_than_there_is(tmp_path: Path) -> None:
    """A sparse file of 2^50 bytes costs its author nothing, and must not be read into memory."""
    file = tmp_path / WEIGHTS
    (tmp_path / "config.json").write_text("{}")
    for length in (2**60, 2**50 - 8, 2**64 - 1, 100_000_001):
        file.write_bytes(length.to_bytes(8, "little"))
        os.truncate(file, 2**40)
        with pytest.raises(UserError, match=r"model\.safetensors: "):
            open_checkpoint(config_of(tmp_path))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        {"shape": [2]},
        [],
    ],
)
def test_a_tensor_has_the_bytes_that_its_type_and_shape_take(tmp_path: Path, entry: object) -> None:
    good = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
    header = json.dumps({"bad": entry, "good": good}).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(UserError, match=r"bad's type and shape do not fit|not a readable safetensors file"):
        open_checkpoint(config_of(tmp_path))


def test_deep_json_in_a_header_is_one_line(tmp_path: Path) -> None:
    header = b"[" * 100_000
    (tmp_path / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        open_checkpoint(config_of(tmp_path))


@pytest.mark.parametrize("name", ["../secret", "/dev/zero", "pipe", "folder", "SECRET"])
def test_checksums_read_no_file_outside_and_no_device(tmp_path: Path, name: str) -> None:
    """`/dev/zero` and a pipe would never end."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    folder = tmp_path / "artefact"
    (folder / "folder").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    name = str(secret) if name == "SECRET" else name
    line = f"{hashlib.sha256(b'secret').hexdigest()}  {name}\n"
    (folder / SUMS).write_text(line + "# 1 files\n")
    with pytest.raises(UserError, match="is not what was written"):
        check_sums(folder)


def some_state() -> RunState:
    tensors = {"x": torch.zeros(2)}
    optimizer = OptimizerState(tensors, dict.fromkeys(MOMENTS, tensors), 1)
    return RunState(1, optimizer, Best(), 1, LogPosition(), evaluation_due=False, fingerprint={})


def test_a_checkpoint_names_its_own_files_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, some_state(), keep=1)
    path = tmp_path / "step-000001"
    assert read_checkpoint(path).step == 1
    save_file({"x": torch.zeros(2)}, tmp_path / "outside.safetensors")
    header = json.loads((path / STATE).read_text())
    header.pop("sha256")
    digest = hashlib.sha256((tmp_path / "outside.safetensors").read_bytes()).hexdigest()
    for files in (header["files"] | {"../outside.safetensors": digest}, {}, [], "x"):
        changed = header | {"files": files}
        own = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
        (path / STATE).write_text(json.dumps(changed | {"sha256": own}))
        with pytest.raises(UserError, match="names other files than a checkpoint has"):
            read_checkpoint(path)


@pytest.mark.parametrize("key", ["step", "optimizer_step", "best", "metrics_log", "evaluation_due", "files", "version"])
@pytest.mark.parametrize("value", [None, [[3]]])
def test_a_checkpoint_that_lacks_a_part_is_one_line(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "step-000001"
    write_checkpoint(tmp_path, some_state(), keep=1)
    header = json.loads((path / STATE).read_text())
    header.pop("sha256")
    header.pop(key)
    if value is not None and key in ("best", "metrics_log"):
        header[key] = value
    own = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    (path / STATE).write_text(json.dumps(header | {"sha256": own}))
    with pytest.raises(UserError, match="checkpoint"):
        read_checkpoint(path)


def test_a_split_names_its_own_files_alone(tmp_path: Path) -> None:
    rows = {"input_ids": [[1, 2]], "length": [2], "label": [0]}
    for name in ("train", "secret"):
        Dataset.from_dict(rows).save_to_disk(tmp_path / name)
    assert load_split(tmp_path / "train").lengths.tolist() == [2]
    file = tmp_path / "train" / "state.json"
    state = json.loads(file.read_text())
    name = state["_data_files"][0]["filename"]
    for outside in (f"../secret/{name}", str(tmp_path / "secret" / name)):
        file.write_text(json.dumps(state | {"_data_files": [{"filename": outside}]}))
        with pytest.raises(UserError, match="names files that are not in it"):
            load_split(tmp_path / "train")
    for content in ("{", "{}", "[]", '{"_data_files": [3]}', "[" * 100_000):
        file.write_text(content)
        with pytest.raises(UserError, match="is damaged"):
            load_split(tmp_path / "train")


def comparison_file(folder: Path, **changes: object) -> Path:
    values = {
        "dir": str(folder / "out"),
        "base": {"data": {"train": "t.tsv", "validation": "v.tsv", "test": "e.tsv"}},
        "backbones": {"tiny": {"backbone": {"name_or_path": "x"}}},
        "datasets": {"news": {}},
        "methods": {"lt_prompt": {}},
    }
    file = folder / "compare.yaml"
    file.write_text(dump_yaml(values | changes))
    return file


@pytest.mark.parametrize("name", NOT_PLAIN, ids=ascii)
@pytest.mark.parametrize("key", ["backbones", "datasets", "methods"])
def test_names_of_a_comparison_become_folders_and_are_plain(tmp_path: Path, key: str, name: str) -> None:
    part = {"backbone": {"name_or_path": "x"}} if key == "backbones" else {"method": {"name": "lt_prompt"}}
    part = {} if key == "datasets" else part
    with pytest.raises(UserError, match="becomes a folder"):
        load_comparison(comparison_file(tmp_path, **{key: {name: part}}))


def test_values_of_the_grid_stay_below_the_comparison(tmp_path: Path) -> None:
    """Values for reading where they can be a name; a hash where they cannot, each its own."""
    templates = ["{label}", "../../../../{label}", "/tmp/{label}", "{label} " + "x" * 300]
    comparison = load_comparison(comparison_file(tmp_path, grid={"labels.template": templates, "train.epochs": [1]}))
    group = groups(comparison)[0]
    folders = [cell_config(comparison, group, point, 0).run_dir.path.parent for point in settings(comparison)]
    assert {folder.resolve().parent for folder in folders} == {(tmp_path / "out" / group.path).resolve()}
    assert folders[0].name == "template={label}_epochs=1" and len(set(folders)) == len(templates)
