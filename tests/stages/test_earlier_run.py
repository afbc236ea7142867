"""A run, a comparison or a `fit` that an earlier run refuses leaves all that it was made from as it was."""

import shutil
from pathlib import Path

import pytest

from pipeline import LTuningClassifier
from pipeline.cli import main
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.stages.choose_reading import choose_reading
from pipeline.stages.report import report
from pipeline.stages.run import run
from tests.support.tiny import save_tiny
from tests.support.tiny_comparison import write_comparison
from tests.support.tiny_run import tiny_config
from tests.support.worlds import run_worlds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and the config file it came from. A text has a special token."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_config(folder, method={"name": "probe"}, logging={"trackers": ["jsonl"]})
    with (folder / "train.tsv").open("a") as file:
        file.write("a season </s> ends\tsport\n")
    (folder / "given.yaml").write_text(config.to_yaml())
    assert stage(folder, "run") == 0
    return folder


def stage(folder: Path, command: str, *overrides: str) -> int:
    return main([command, "--config", str(folder / "given.yaml"), *overrides])


def state_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """All files but logs and locks: when each was written, and its content."""
    files = (file for file in folder.rglob("*") if file.is_file() and "logs" not in file.parts)
    found = (file for file in files if file.suffix != ".lock" and file.name not in (".lock", "report.html"))
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in found}


def test_an_edited_file_is_refused_before_anything_is_replaced(
    folder: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    file, before = folder / "train.tsv", state_of(folder / "run")
    given = file.read_text()
    file.write_text(given + "one more cup\tsport\n")
    assert stage(folder, "run") == 2
    assert "holds a finished run, and data: data.train was" in capsys.readouterr().err.splitlines()[-1]
    assert state_of(folder / "run") == before
    file.write_text(given)
    with caplog.at_level("INFO", "pipeline"):
        for command in ("run", "train", "evaluate"):
            assert stage(folder, command) == 0
    report(str(folder / "run"))
    assert "made again" not in caplog.text and state_of(folder / "run") == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.template='It says: {text}'"], ["data: data.template was 'None', now 'It says: {text}'"]),
        (["data.special_tokens=true"], ["data: data.train.special_tokens was 'text', now 'special'"]),
        (["labels.texts={sport: games}"], ["label states: hypotheses was "]),
        (["data.max_length=32", "run.seed=1"], ["label states: data.max_length was '64', now '32'; run.seed was"]),
        (["backbone.pooling=first"], ["backbone.pooling was 'auto', now 'first'"]),
        (["backbone.layers=1"], ["label states: backbone.layers was 'None', now '1'"]),
    ],
)
def test_other_settings_are_refused_before_anything_is_replaced(
    folder: Path, overrides: list[str], said: list[str], capsys: pytest.CaptureFixture
) -> None:
    before = state_of(folder / "run")
    assert stage(folder, "run", *overrides) == 2
    [*_, error] = capsys.readouterr().err.splitlines()
    assert "holds a finished run, and " in error and all(words in error for words in said)
    assert state_of(folder / "run") == before


def test_a_new_label_is_named_by_the_file_that_has_it(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """The words for it would be none for the labels of the finished run."""
    before, other = state_of(folder / "run"), folder / "other.tsv"
    other.write_text((folder / "train.tsv").read_text() + "a play in five acts\tarts\n")
    given = [f"data.train={other}", "labels.texts={arts: theatre}"]
    assert stage(folder, "run", *given) == 2
    assert "holds a finished run, and data: data.train was" in capsys.readouterr().err
    assert stage(folder, "run", given[1]) == 2 and "arts" in capsys.readouterr().err.splitlines()[-1]
    assert state_of(folder / "run") == before


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that stopped after four, and the config file it came from."""
    folder = tmp_path_factory.mktemp("interrupted")
    config = tiny_config(folder, train={"max_steps": 6, "save_every": 2}, logging={"trackers": ["jsonl"]})
    (folder / "given.yaml").write_text(config.to_yaml())
    assert stage(folder, "run") == 0
    for left in (config.run_dir.adapter, config.run_dir.adapter_final, config.run_dir.evaluation):
        shutil.rmtree(left)
    shutil.rmtree(config.run_dir.checkpoints / "step-000006")
    return folder


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.max_length=16"], "data: data.max_length was '64', now '16'"),
        (["labels.template='On {label}'", "method.rank=2"], "label states: hypotheses was "),
        (["method.rank=2"], "method.rank was "),
        (["train.resume=never"], "holds checkpoints and train.resume is never"),
        (["train.resume=checkpoints/step-000099"], "step-000099' is not a checkpoint directory"),
    ],
)
def test_what_an_interrupted_run_refuses_replaces_nothing(
    interrupted: Path, overrides: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    before = state_of(interrupted / "run")
    assert stage(interrupted, "run", *overrides) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert state_of(interrupted / "run") == before


def test_an_interrupted_run_goes_on_with_what_does_no_harm(interrupted: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pipeline"):
        assert stage(interrupted, "run", "train.eval_every=3") == 0
    assert caplog.text.count("goes on after step 4") == 1 and caplog.text.count("train.eval_every was") == 1


def refused(folder: Path) -> list[str]:
    """On every rank of a world: what `run` says of other texts, and what choose-reading then leaves in the run."""
    config = tiny_config(folder, method={"name": "probe"}, logging={"trackers": ["jsonl"]}, engine={"threads": 1})
    run(config)
    other = config.model_copy(update={"data": config.data.model_copy(update={"template": "It says: {text}"})})
    with pytest.raises(UserError) as error:
        run(other)
    choose_reading(other)
    return [str(error.value), str(read_json(config.run_dir.manifest_file)["fingerprint"]["data.template"])]


def test_two_ranks_refuse_it_alike(tmp_path: Path) -> None:
    save_tiny(tmp_path / "backbone", "llama_gqa")
    [first, second] = run_worlds("tests.stages.test_earlier_run:refused", [2], tmp_path, 300)[2]
    assert first == second and "holds a finished run, and data: data.template was" in first[0] and first[1] == "None"


def test_what_overwrites_is_not_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, method={"name": "probe"}, logging={"trackers": ["jsonl"]})
    (tmp_path / "given.yaml").write_text(config.to_yaml())
    assert stage(tmp_path, "run") == 0
    assert stage(tmp_path, "run", "data.train_limit=9", "--overwrite") == 0
    assert read_json(config.run_dir.manifest_file)["splits"]["train"]["rows"] == 9


def test_a_comparison_keeps_what_its_cells_share(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_comparison(tmp_path, grid={}, methods={"probe": {}, "majority": {}}, seeds=[0])
    command = ["compare", "--config", str(file)]
    assert main(command) == 0
    before = state_of(tmp_path / "comparison")
    with (tmp_path / "train.tsv").open("a") as texts:
        texts.write("one more cup\tsport\n")
    assert main(command) == 2
    assert "seed-0' holds a finished run, and data: data.train was" in capsys.readouterr().err.splitlines()[-1]
    assert state_of(tmp_path / "comparison") == before
    assert main([*command, "--overwrite"]) == 0


def test_fit_keeps_what_its_run_directory_has(folder: Path, tmp_path: Path) -> None:
    texts, labels = ["a goal", "the cup", "shares fell", "profit rose"], ["sport", "sport", "money", "money"]
    given = {"backbone": str(folder / "backbone"), "method": "probe", "run_dir": str(tmp_path / "run")}
    own = LTuningClassifier(**given, validation_split=0, overrides={"data.max_length": 64})
    own.fit(texts, labels)
    before = state_of(tmp_path / "run")
    with pytest.raises(UserError, match="holds a finished run, and data: data\\.max_length was '64', now '32'"):
        own.set_params(overrides={"data.max_length": 32}).fit(texts, labels)
    assert {file: content for file, (_, content) in state_of(tmp_path / "run").items()} == {
        file: content for file, (_, content) in before.items()
    }
