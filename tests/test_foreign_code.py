"""Code that comes with a model, an adapter, a run directory or a data set runs where the user says so, else nowhere."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, dynamic_module_utils

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.model_config import load_model_config
from pipeline.cli import main
from pipeline.comparison.config import load_comparison
from pipeline.config import RunConfig, load_config, parse_config
from pipeline.core.errors import UserError
from pipeline.data.config import DataConfig
from pipeline.data.sources import read_split
from pipeline.data.tokenizer import load_tokenizer
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages.evaluate import evaluate
from tests.support.fork_server import run_forked
from tests.support.tiny import save_tiny
from tests.support.tiny_run import tiny_run

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaModel
Path({marker!r}).touch()
class OwnConfig(LlamaConfig):
    pass
class OwnModel(LlamaModel):
    config_class = OwnConfig
"""


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def hostile_backbone(folder: Path, marker: Path) -> Path:
    """A tiny Llama whose config.json and tokenizer_config.json point at Python code beside them."""
    save_tiny(folder, "llama_gqa")
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    change(folder / "config.json", auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"})
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.OwnConfig"]})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def marker(folder: Path) -> Path:
    """Exists once the foreign code has run."""
    return folder / "ran"


@pytest.fixture(scope="module")
def config(folder: Path, marker: Path) -> RunConfig:
    """A finished run on a backbone with code beside it, none of which ran."""
    hostile_backbone(folder / "backbone", marker)
    config = tiny_run(folder)
    config.run_dir.write_config(config.to_yaml())
    evaluate(config)
    assert not marker.exists()
    return config


@pytest.fixture
def copy(config: RunConfig, tmp_path: Path) -> Path:
    """The run directory, as somebody else might send it."""
    return shutil.copytree(config.run_dir.path, tmp_path / "run")


def ask(adapter: Path) -> None:
    file = adapter / "adapter_config.json"
    change(file, backbone=json.loads(file.read_text())["backbone"] | {"trust_remote_code": True})
    (adapter / "SHA256SUMS").unlink()


def test_an_adapter_that_asks_for_its_code_to_be_run_is_refused_by_name(
    copy: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    ask(copy / "adapter")
    with pytest.raises(UserError, match=r"backbone\.trust_remote_code: a file may not have the code run .*--trust-rem"):
        LoadedAdapter.load(copy, "cpu")
    with pytest.raises(UserError, match="a file may not"):  # what the caller allows, the file still may not ask for
        LoadedAdapter.load(copy, "cpu", trust_remote_code=True)
    (tmp_path / "texts.txt").write_text("a goal\n")
    assert main(["predict", "--adapter", str(copy / "adapter"), "--input", str(tmp_path / "texts.txt")]) == 2
    assert "adapter_config.json': backbone.trust_remote_code" in capsys.readouterr().err
    assert not marker.exists()


def test_a_run_directory_that_asks_for_it_is_not_reported(
    copy: Path, marker: Path, capsys: pytest.CaptureFixture
) -> None:
    ask(copy / "adapter")
    assert main(["report", "--run", str(copy)]) == 2
    assert "adapter_config.json': backbone.trust_remote_code" in capsys.readouterr().err
    file = copy / "config.yaml"
    file.write_text(file.read_text().replace("backbone:\n", "backbone:\n  trust_remote_code: true\n"))
    assert main(["report", "--run", str(copy)]) == 2
    assert "config.yaml: 'backbone.trust_remote_code': a file may not" in capsys.readouterr().err
    assert not marker.exists() and not (copy / "report.html").exists()


def test_the_code_does_not_run_unasked(config: RunConfig, copy: Path, marker: Path) -> None:
    LoadedAdapter.load(config.run.dir, "cpu").predict(["a goal"])
    assert main(["report", "--run", str(copy), "--no-texts"]) == 0
    assert not marker.exists()


def test_other_backbones_are_refused_before_their_code_runs(config: RunConfig, marker: Path, tmp_path: Path) -> None:
    other = hostile_backbone(tmp_path / "other", marker)
    change(other / "config.json", rms_norm_eps=1e-3)
    with pytest.raises(UserError, match="made for another backbone"):
        LoadedAdapter.load(config.run.dir, "cpu", backbone=str(other), trust_remote_code=True)
    assert not marker.exists()


def main_keeping_modules(arguments: list[str]) -> int:
    """The command line; code that it is allowed to load is kept in the folder that is the first argument."""
    dynamic_module_utils.HF_MODULES_CACHE, *command = arguments
    return main(command)


def test_the_code_runs_where_the_command_line_says_so(config: RunConfig, tmp_path: Path) -> None:
    """In a process of its own, which may not find the code among the modules that were imported already."""
    marker = tmp_path / "ran"
    backbone = hostile_backbone(tmp_path / "backbone", marker)
    change(backbone / "tokenizer_config.json", auto_map={})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    options = [f"backbone.name_or_path={backbone}", f"run.dir={tmp_path / 'run'}"]
    command, log = ["preprocess", "--config", str(tmp_path / "config.yaml"), *options], tmp_path / "log"
    keeping = [str(tmp_path / "modules"), *command]
    assert run_forked("tests.test_foreign_code:main_keeping_modules", keeping, log, 300) == 0, log.read_text()
    assert not marker.exists()
    shutil.rmtree(tmp_path / "run")
    keeping.append("--trust-remote-code")
    assert run_forked("tests.test_foreign_code:main_keeping_modules", keeping, log, 300) == 0, log.read_text()
    assert marker.exists()
    assert "trust_remote_code" not in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("value", [True, "true", 1, "yes", [True]])
def test_no_file_and_no_override_may_say_so(config: RunConfig, tmp_path: Path, value: Any) -> None:
    values = config.model_dump(mode="json")
    values["backbone"]["trust_remote_code"] = value
    with pytest.raises(UserError, match=r"'backbone\.trust_remote_code': a file may not"):
        parse_config(values)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    with pytest.raises(UserError, match=r"'backbone\.trust_remote_code': a file may not"):
        load_config(tmp_path / "config.yaml", [f"backbone.trust_remote_code={json.dumps(value)}"])


def test_a_comparison_may_not_say_so(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "dir": str(tmp_path / "out"),
        "base": {"data": {"train": "t.tsv", "validation": "v.tsv", "test": "e.tsv"}},
        "backbones": {"tiny": {"backbone": {"name_or_path": "x"}}},
        "datasets": {"news": {}},
        "methods": {"lt_prompt": {}},
    }
    file = tmp_path / "compare.yaml"
    file.write_text(json.dumps(values))
    assert not load_comparison(file).trust_remote_code
    for key in ("trust_remote_code", "base.backbone.trust_remote_code", "backbones.tiny.backbone.trust_remote_code"):
        with pytest.raises(UserError, match="a file may not have the code run"):
            load_comparison(file, [f"{key}=true"])


def test_artefacts_of_older_versions_stay_readable_and_new_ones_lack_the_key(config: RunConfig, copy: Path) -> None:
    for file in (copy / "config.yaml", copy / "adapter" / "adapter_config.json"):
        assert "trust_remote_code" not in file.read_text()
    assert "trust_remote_code" not in config.trusted(True).to_yaml()
    old = copy / "config.yaml"
    old.write_text(old.read_text().replace("backbone:\n", "backbone:\n  trust_remote_code: false\n"))
    assert load_config(old, [f"run.dir={config.run.dir}"]) == config
    file = copy / "adapter" / "adapter_config.json"
    change(file, backbone=json.loads(file.read_text())["backbone"] | {"trust_remote_code": False})
    (copy / "adapter" / "SHA256SUMS").unlink()
    assert LoadedAdapter.load(copy, "cpu").predict(["a goal"])


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["somebody/kernel", "flash_attention_2", "somebody/kernel@main:f"])
def test_config_json_does_not_choose_a_kernel_from_the_hub(tmp_path: Path, key: str, value: str) -> None:
    save_tiny(tmp_path, "llama_gqa")
    change(tmp_path / "config.json", **{key: value})
    assert load_model_config(BackboneConfig(name_or_path=str(tmp_path)))._attn_implementation is None
    change(tmp_path / "config.json", **{key: "eager"})
    assert load_model_config(BackboneConfig(name_or_path=str(tmp_path)))._attn_implementation == "eager"


def test_a_tokenizer_that_needs_its_own_code_is_one_line(tmp_path: Path, marker: Path) -> None:
    hostile_backbone(tmp_path, marker)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text('{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}')
    change(tmp_path / "config.json", model_type="own")
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        load_tokenizer(BackboneConfig(name_or_path=str(tmp_path)))
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_model_config(BackboneConfig(name_or_path=str(tmp_path)))
    assert not marker.exists()


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"model": {}}', "null", "{"])
def test_damaged_files_of_a_tokenizer_are_one_line(tmp_path: Path, content: str) -> None:
    save_tiny(tmp_path, "llama_gqa")
    AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        load_tokenizer(BackboneConfig(name_or_path=str(tmp_path)))


def test_a_data_set_with_a_script_is_one_line(tmp_path: Path, marker: Path) -> None:
    source = tmp_path / "news"
    source.mkdir()
    (source / "news.py").write_text(CODE.format(marker=str(marker)))
    for name in (source, source / "news.py"):
        with pytest.raises(UserError, match="the data set cannot be loaded"):
            read_split(f"hub:{name}:train", "train", DataConfig(train="x"), tmp_path / "x.arrow")
    assert not marker.exists()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """site-packages with one package; its code, and that of a package in the current folder, must not run."""
    for place in (tmp_path / "site-packages" / "good_models", tmp_path / "here" / "evil_models"):
        save_tiny(place / "model", "llama_gqa")
        (place / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "here"), *sys.path, str(tmp_path / "site-packages")])
    return tmp_path / "site-packages"


def test_a_package_is_found_where_packages_are_installed(packages: Path) -> None:
    found = BackboneConfig(name_or_path="package:good_models/model")
    assert found.location == str(packages / "good_models" / "model") and load_model_config(found).model_type == "llama"


@pytest.mark.parametrize(
    "name",
    [
        "evil_models/model",
        "evil_models.sub/model",
        "good_models.model/x",
        "os.path/x",
        "../here/evil_models",
        "/etc",
        "",
        "good models/x",
        "good_models/../../here/evil_models/model",
        "good_models//etc",
    ],
)
def test_a_package_is_found_nowhere_else(packages: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"is not installed|leads out of the package"):
        _ = BackboneConfig(name_or_path=f"package:{name}").location
    assert "evil_models" not in sys.modules


def test_a_folder_that_a_package_lacks_is_told(packages: Path) -> None:
    with pytest.raises(UserError, match=r"good_models/modle': the package good_models has no such folder$"):
        _ = BackboneConfig(name_or_path="package:good_models/modle").location


def test_a_current_folder_that_is_called_like_the_installed_is_none(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(packages)
    with pytest.raises(UserError, match="is not installed"):
        _ = BackboneConfig(name_or_path="package:good_models/model").location
