"""The command line: exit statuses, one-line errors for bad input, and commands that write nothing.

covers cli/__init__, __main__
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BartConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pipeline.cli import main
from pipeline.cli.options import STAGES
from pipeline.config import load_config
from pipeline.core.ownership import MARK
from tests.support.tiny import save_tiny
from tests.support.tiny_run import tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "config.yaml").write_text(tiny_config(folder, train={"max_steps": 4, "batch_size": 4}).to_yaml())
    return folder


@pytest.fixture(autouse=True)
def _no_zero3() -> None:
    """A command that failed before this one has announced ZeRO-3, and transformers would partition new models."""
    unset_hf_deepspeed_config()


def run(folder: Path, *arguments: str, command: str = "run") -> int:
    return main([command, "--config", str(folder / "config.yaml"), *arguments])


def error_of(capsys: pytest.CaptureFixture) -> str:
    """The last line of standard error; the only one of an error."""
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    assert [line for line in lines if "error" in line.lower()] == lines[-1:], lines
    assert lines[-1].startswith("error: ")
    return lines[-1]


def files_under(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.epoch=3"], "unknown key 'train.epoch': did you mean 'train.epochs'?"),
        (["train.epochs=x", "run.seed=-1"], "'train.epochs'"),
        (["epochs"], "'epochs' is not an override: write section.key=value"),
        (["engine.deepspeed=nowhere.json"], "engine.deepspeed 'nowhere.json' does not exist"),
        (["data.train=nowhere.tsv"], "nowhere.tsv"),
        (["backbone.name_or_path=nowhere"], "its cache does not hold nowhere"),
        (["data.max_length=200"], "set data.max_length=128"),
        (["labels.names=[sport, business]"], "'science'"),
        (["data.label=lable"], "'lable'"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture, tmp_path: Path, arguments: list[str], words: str
) -> None:
    assert run(folder, f"run.dir={tmp_path / 'run'}", *arguments) == 2
    assert words in error_of(capsys)
    left = (
        {path.name for path in (tmp_path / "run").iterdir()} - {".lock", MARK} if (tmp_path / "run").exists() else set()
    )
    whole = {"config.yaml", "data"} if "deepspeed" in words else {"config.yaml"}
    assert left <= whole, "nothing half-written"


def test_config_files_that_are_none(folder: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["train", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in error_of(capsys)
    (tmp_path / "bad.yaml").write_text("run: [\n  - {")
    assert main(["train", "--config", str(tmp_path / "bad.yaml")]) == 2
    assert "bad.yaml" in error_of(capsys)


def test_deepspeed_json_that_is_none(folder: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    for content, words in (
        ("{", "is not JSON"),
        ('{"zero_optimization": {"stage": 9}}', "stage must be 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 3, "reduce_bucket_size": NaN}}', "NaN is not a number"),
    ):
        (tmp_path / "ds.json").write_text(content)
        assert run(folder, f"engine.deepspeed={tmp_path / 'ds.json'}", f"run.dir={tmp_path / 'run'}") == 2
        assert words in error_of(capsys)


def test_a_run_directory_that_cannot_be_made(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for command in ("preprocess", "run", "train"):
        assert run(folder, f"run.dir={folder / 'config.yaml' / 'run'}", command=command) == 2
        assert "cannot be written (Not a directory): choose another run.dir" in error_of(capsys)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=320), "encoder-decoder"),
        (AutoConfig.for_model("vit", hidden_size=16, num_hidden_layers=1, num_attention_heads=2), "vision"),
    ],
    ids=["encoder-decoder", "vision"],
)
def test_models_of_other_kinds(
    folder: Path, capsys: pytest.CaptureFixture, tmp_path: Path, config: Any, word: str
) -> None:
    save_tiny(tmp_path / "model", "llama")
    config.save_pretrained(tmp_path / "model")
    for command in ("run", "estimate"):
        arguments = [f"backbone.name_or_path={tmp_path / 'model'}", f"run.dir={tmp_path / 'run'}"]
        assert run(folder, *arguments, command=command) == 2
        assert word in error_of(capsys)


def test_an_adapter_of_another_backbone_and_no_adapter(
    folder: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert run(folder) == 0
    (tmp_path / "texts.txt").write_text("a goal\n")
    predict = ["predict", "--input", str(tmp_path / "texts.txt"), "--device", "cpu"]
    assert main([*predict, "--run", str(folder / "run"), "--output", str(tmp_path / "out.jsonl")]) == 0
    [line] = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line)["label"] in ("business", "science", "sport")
    save_tiny(tmp_path / "other", "llama", num_hidden_layers=3)
    capsys.readouterr()
    assert main([*predict, "--run", str(folder / "run"), "--backbone", str(tmp_path / "other")]) == 2
    assert "another backbone" in error_of(capsys)
    assert main([*predict, "--run", str(tmp_path)]) == 2
    assert "is not an adapter directory" in error_of(capsys)


def without_lock(folder: Path) -> dict[Path, int]:
    return {path: time for path, time in files_under(folder).items() if path.name != ".lock" and path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.learning_rate=0.5"], "train.learning_rate was '0.001', now '0.5'"),
        (["train.epochs=9", "run.seed=1"], "run.seed was '0', now '1'; train.epochs was"),
        (["train.learning_rate=0.5", "train.resume=never"], "train.learning_rate was"),
        (["train.eval_every=2", "train.resume=checkpoints/step-000004"], "train.eval_every was"),
        (["data.train=nowhere.tsv", "--overwrite"], "nowhere.tsv"),
        (["train.learning_rate=0.5", "train.resume=checkpoints/step-000004", "--overwrite"], "give one of them"),
    ],
)
def test_a_finished_run_is_kept(folder: Path, capsys: pytest.CaptureFixture, arguments: list[str], words: str) -> None:
    assert run(folder) == 0
    before = without_lock(folder / "run")
    capsys.readouterr()
    assert run(folder, *arguments) == 2
    said = error_of(capsys)
    assert words in said and ("--overwrite" in arguments or "holds a finished run" in said)
    assert without_lock(folder / "run") == before
    assert run(folder) == 0 and without_lock(folder / "run") == before


def test_overwrite_leaves_nothing_of_the_earlier_run(folder: Path, tmp_path: Path) -> None:
    first, again = [f"run.dir={tmp_path / 'run'}"], ["train.learning_rate=0.5", "train.max_steps=3", "--overwrite"]
    assert run(folder, *first) == 0
    assert run(folder, *first, *again, command="train") == 0
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["LATEST", "step-000003"]
    assert not (tmp_path / "run" / "evaluation").exists(), "it was of another adapter"
    kept = load_config(tmp_path / "run" / "config.yaml")
    assert kept.train.learning_rate == 0.5 and kept.train.max_steps == 3
    summary = json.loads((tmp_path / "run" / "adapter-final" / "summary.json").read_text())
    assert summary["steps"] == 3 and summary["fingerprint"]["train.learning_rate"] == "0.5"


def test_other_data_under_a_finished_run_leave_its_adapter_and_its_config(
    folder: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "other.tsv").write_text((folder / "train.tsv").read_text() + "a late goal\tsport\n")
    given = [f"run.dir={tmp_path / 'run'}"]
    assert run(folder, *given) == 0

    def finished() -> list[object]:
        trained = [without_lock(tmp_path / "run" / name) for name in ("adapter", "adapter-final", "checkpoints")]
        return [*trained, (tmp_path / "run" / "config.yaml").read_bytes()]

    before = finished()
    other = [*given, f"data.train={tmp_path / 'other.tsv'}"]
    assert run(folder, *other, command="preprocess") == 0
    assert run(folder, *other) == 2
    assert "holds a finished run, and data: data.train was" in error_of(capsys)
    assert finished() == before
    assert run(folder, *given) == 0 and finished() == before, "its own data are made again"


def test_a_copy_of_a_run_directory_is_a_run_of_its_own(folder: Path, tmp_path: Path) -> None:
    assert run(folder, f"run.dir={tmp_path / 'original'}") == 0
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    before = files_under(tmp_path / "original")
    copied = ["--config", str(tmp_path / "copy" / "config.yaml")]
    for command in ("preprocess", "encode-labels", "train", "evaluate", "run"):
        assert main([command, *copied]) == 0
    assert main(["evaluate", *copied, "evaluate.splits=[validation]"]) == 0
    assert main(["report", "--run", str(tmp_path / "copy")]) == 0
    assert main(["train", *copied, "--overwrite", "train.learning_rate=0.5"]) == 0
    assert files_under(tmp_path / "original") == before
    assert (tmp_path / "copy" / "report.html").is_file()
    assert load_config(tmp_path / "copy" / "config.yaml").train.learning_rate == 0.5
    (tmp_path / "copy").rename(tmp_path / "moved")
    assert main(["train", "--config", str(tmp_path / "moved" / "config.yaml")]) == 0
    assert not (tmp_path / "copy").exists()


def test_label_tokens_count_towards_the_positions(folder: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    arguments = ["data.max_length=128", f"run.dir={tmp_path / 'run'}"]
    assert run(folder, *arguments, "--dry-run") == 2
    dry = error_of(capsys)
    assert "exceed the backbone's 128 positions: set data.max_length to" in dry
    assert run(folder, *arguments) == 2
    assert error_of(capsys) == dry


def test_the_estimate_needs_no_data_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture) -> None:
    before = files_under(folder)
    arguments = ["--world-size", "8", "--gpu", "a100-80", "data.train=nowhere.tsv", f"run.dir={folder / 'estimated'}"]
    assert run(folder, *arguments, command="estimate") == 0
    assert "8 x a100-80" in capsys.readouterr().out and files_under(folder) == before
    for wrong in (["--gpu", "abacus"], ["--world-size", "0"]):
        assert run(folder, *wrong, command="estimate") == 2
        assert "--" in error_of(capsys)


def test_debug_shows_the_traceback(
    folder: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(folder, "--debug", "data.train=nowhere.tsv", f"run.dir={folder / 'debugged'}") == 2
    assert any(record.exc_info for record in caplog.records)
    assert "nowhere.tsv" in capsys.readouterr().err
    # Ranks say which one they are.
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--config", "none.yaml"]) == 2
    assert capsys.readouterr().err.startswith("rank 1: error: ")


@pytest.mark.parametrize("command", ["estimate", "predict", "report", "run"])
def test_one_rank_answers_and_the_others_say_so(
    command: str,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    options = ["--config", "none.yaml"] if command in STAGES else ["--run", "none"]
    assert main([command, *options, *(["--dry-run"] if command == "run" else [])]) == 0
    assert capsys.readouterr().out == ""
    assert "rank 1 of 2 (variables RANK, WORLD_SIZE) has nothing to do" in caplog.text


def test_variables_that_no_launcher_sets_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "abc")
    for command in ("run", "estimate"):
        assert run(folder, command=command) == 2
        assert error_of(capsys).startswith("error: the variable RANK is 'abc'")


def test_a_full_gpu_says_what_to_lower(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's allocator raises it; here, whoever reads the texts."""
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    monkeypatch.setattr("pipeline.stages.preprocess._preprocess", lambda *_: (_ for _ in ()).throw(full))
    assert run(folder, command="preprocess") == 1
    assert "out of GPU memory: CUDA out of memory. Tried" in (line := error_of(capsys))
    assert "lower train.batch_size" in line
