"""The run config: YAML, overrides, faults in the user's words.

covers core/config_file, backbone/config, engine/config, evaluation/config, training/config
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.adapter.config import AdapterConfig
from pipeline.config import RunConfig, config_keys, load_config, parse_config
from pipeline.core.errors import UserError
from pipeline.core.settings import FOREIGN
from pipeline.core.yaml import dump_yaml, load_yaml
from pipeline.methods import METHOD_NAMES

REPOSITORY = Path(__file__).resolve().parents[1]
LEAST: dict[str, Any] = {
    "run": {"dir": "runs/x"},
    "backbone": {"name_or_path": "some/model"},
    "data": {"train": "train.tsv"},
    "method": {"name": "lt_prefix"},
}


def values(**sections: Any) -> dict[str, Any]:
    merged = {name: dict(section) for name, section in LEAST.items()}
    for name, section in sections.items():
        merged[name] = merged.get(name, {}) | section if isinstance(section, dict) else section
    return merged


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(LEAST))
    return path


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"learning_rat": 1}}, "unknown key 'train.learning_rat': did you mean 'train.learning_rate'?"),
        ({"train": {"max_length": 9}}, "unknown key 'train.max_length': did you mean 'data.max_length'?"),
        ({"trian": {"epochs": 3}}, "unknown key 'trian': did you mean 'train'?"),
        ({"learning_rate": 1e-3}, "unknown key 'learning_rate': did you mean 'train.learning_rate'?"),
        ({"xyzzy": 1}, "unknown key 'xyzzy' (sections: run, backbone, data,"),
        ({"logging": {"zzz": 1}}, "unknown key 'logging.zzz' (keys of logging: trackers, project, name, trace_steps)"),
        ({"method": {"name": "lt_prefix", "rnk": 1}}, "unknown key 'method.rnk': did you mean 'method.rank'?"),
        (
            {"method": {"name": "lt_prompt", "rank": 1}},
            "(keys of method: head, start, judge, first_layer, shortlist, position, name, label_scale,",
        ),
        ({"method": {"name": "lt_prefx"}}, "'method.name' must be one of lt_prefix, lt_prompt, prefix,"),
        (
            {"method": {"name": "lt_prefix", "pooling": "scores", "rank": 4}},
            "method.rank has a meaning only with method.pooling=tokens",
        ),
        (
            {"method": {"name": "lt_prompt", "position": "after", "shortlist": 1}},
            "method.shortlist=1 leaves a judge nothing to compare",
        ),
        (
            {"method": {"name": "lt_prompt", "head": "linear", "judge": "fitted"}},
            "judge=fitted needs method.head=fitted",
        ),
        ({"train": {"max_steps": 0}, "method": {"name": "prompt"}}, "train.max_steps=0 would leave method prompt as"),
        ({"method": {"name": "lt_prompt", "init_std": 1}}, "init_std has a meaning only with method.start=random"),
        ({"train": {"epochs": 0}}, "'train.epochs': input should be greater than or equal to 1 (got 0)"),
        ({"train": {"objective": "pair"}}, "'train.objective': input should be 'candidates', 'pairs' or 'batch' (got"),
        ({"evaluate": {"rewordings": ["x"]}}, "'evaluate.rewordings.0': must be a template with {label}, or a mapping"),
        ({"train": {"objective": "pairs", "candidates": 4}}, "candidates has no meaning with train.objective=pairs"),
        ({"train": {"candidates": 1}}, "'train.candidates': must be all, or a number from 2 to 1000000 (got 1)"),
        ({"train": 3}, "'train': input should be a valid dictionary or instance of TrainConfig (got 3)"),
        ({"backbone": {"name_or_path": None}}, "'backbone.name_or_path': input should be a valid string (got None)"),
    ],
)
def test_faults_are_in_the_users_words(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as fault:
        parse_config(values(**sections))
    assert words in str(fault.value) and "\n" not in str(fault.value)


def test_a_default_that_follows_from_a_faulty_key_is_no_second_fault() -> None:
    with pytest.raises(UserError, match=r"'method\.first_layer': [^;]*$"):
        parse_config(values(method={"name": "lt_prefix", "first_layer": "x"}))


def test_a_method_needs_a_name() -> None:
    with pytest.raises(UserError, match=r"'method\.name' is missing: take one of lt_prefix, lt_prompt"):
        parse_config(values() | {"method": {"dropout": 0.1}})


def test_every_fault_is_told_at_once(file: Path) -> None:
    file.write_text("run: {}\nbackbone: {dtype: float16, zzz: 1}\ndata: {train: a}\nmethod: {name: nope}\n")
    with pytest.raises(UserError) as fault:
        load_config(file, ["train.warmup_ratio=2", "labels.template=none"])
    for part in ("run.dir", "backbone.name_or_path", "backbone.dtype", "backbone.zzz", "method.name"):
        assert f"'{part}'" in str(fault.value)
    assert "'train.warmup_ratio'" in str(fault.value) and "'labels.template'" in str(fault.value)
    assert str(fault.value).startswith(str(file))


def test_defaults_yield_to_the_file_and_the_file_to_overrides(file: Path) -> None:
    file.write_text(dump_yaml(values(train={"epochs": 7, "batch_size": 4})))
    config = load_config(file, ["train.batch_size=5", "train.batch_size=6", "labels.names=[no, yes]"])
    assert (config.train.epochs, config.train.batch_size, config.train.eval_every) == (7, 6, 200)
    assert config.labels.names == ["no", "yes"]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.learning_rate=1e-3", "learning_rate", 1e-3),
        ("train.learning_rate=2.5E-4", "learning_rate", 2.5e-4),
        ("train.max_steps=null", "max_steps", None),
        ("train.max_steps=010", "max_steps", 10),
        ("train.resume=a=b: c", "resume", None),
    ],
)
def test_values_are_read_as_yaml(file: Path, override: str, key: str, value: Any) -> None:
    if value is None and key == "resume":
        with pytest.raises(UserError, match=r"the value of 'train\.resume' is not YAML: a=b: c|valid string"):
            load_config(file, [override])
        return
    assert getattr(load_config(file, [override]).train, key) == value


def test_small_numbers_are_numbers_in_the_file_too(file: Path) -> None:
    file.write_text(file.read_text() + "train: {learning_rate: 1e-3, warmup_ratio: 5e-2}\n")
    config = load_config(file)
    assert (config.train.learning_rate, config.train.warmup_ratio) == (1e-3, 0.05)


def test_an_empty_section_has_its_defaults(file: Path) -> None:
    file.write_text(file.read_text() + "train:\n# epochs: 4\nlabels:\n")
    assert load_config(file).train == RunConfig.model_fields["train"].default


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs", "'train.epochs' is not an override: write section.key=value"),
        ("=3", "'=3' is not an override"),
        ("train.epochs=[1", r"the value of 'train.epochs' is not YAML .*: \[1"),
        ("train.epochs.deep=1", r"'train.epochs': input should be a valid integer"),
    ],
)
def test_overrides_that_are_none(file: Path, override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"run: {dir: \xff}", "utf-8"),
        (b"run: [", "cannot be read"),
        (b"run: {dir: a}\nrun: {dir: b}\n", 'line 2: found duplicate key "run"'),
        (b"- a\n", "mapping"),
        (b"", "mapping"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as fault:
        load_config(path)
    assert words in str(fault.value) and str(path) in str(fault.value) and "\n" not in str(fault.value)


def test_the_resolved_config_is_the_same_config(tmp_path: Path) -> None:
    config = parse_config(values(data={"text": "no", "label": "1e-3"}, train={"learning_rate": 1e-7}))
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config
    assert load_yaml(path.read_text())["train"]["eval_every"] == 200, "every key is written out"


def test_every_key_is_listed_with_default_and_help() -> None:
    listed = list(config_keys())

    def leaves(part: Any, prefix: str = "") -> set[str]:
        if not isinstance(part, BaseModel):
            return {prefix[:-1]}
        names = [name for name, field in type(part).model_fields.items() if not field.exclude]
        return set().union(*(leaves(getattr(part, name), f"{prefix}{name}.") for name in names))

    configs = [parse_config(values(method={"name": name})) for name in METHOD_NAMES]
    assert {key for key, _, _ in listed} == set().union(*map(leaves, configs))
    defaults: dict[str, set[str]] = {}
    for key, default, help_text in listed:
        defaults.setdefault(key, set()).add(default)
        assert len(help_text) > 10 or key == "method.name", key
    assert defaults["run.dir"] == {"required"}
    assert defaults["train.learning_rate"] == {json.dumps(1e-3)}
    assert defaults["method.name"] == {f'"{name}"' for name in METHOD_NAMES}


@pytest.mark.parametrize(
    "recipe", sorted((REPOSITORY / "launch" / "recipes").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_is_valid(recipe: Path) -> None:
    load_config(recipe)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_config(values()).train.epochs = 4  # type: ignore[misc]


PATHS = ["run.dir", "backbone.name_or_path", "data.train", "data.validation", "data.test", "engine.deepspeed"]


@pytest.mark.parametrize("key", [*PATHS, "train.resume", "train.start_from"])
def test_home_and_variables_in_every_path(key: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("STORE", "/store")
    section, leaf = key.split(".")
    for given, path in (("~/x", "/home/me/x"), ("${STORE}/$STORE", "/store//store")):
        config = load_config(file, [f"{key}={given}"])
        assert getattr(getattr(config, section), leaf) == path
        assert parse_config(load_yaml(config.to_yaml())) == config
    for given, words in (("$NOWHERE/x", "the environment variable 'NOWHERE' is not set"), ("~no-such/x", "'~no-such'")):
        with pytest.raises(UserError, match=f"'{key}': .*{words}.* .got '") as fault:
            load_config(file, [f"{key}={given}"])
        assert "\n" not in str(fault.value) and "Value error" not in str(fault.value)


def test_no_path_is_forgotten() -> None:
    """A key that says of itself that it is a file, a folder or a path takes `~`."""
    said = {
        key for key, _, text in config_keys() if re.search(r"\b(file|folder|path|directory)\b", text, re.IGNORECASE)
    }
    others = {"data.label", "data.quoting", "data.on_error", "labels.names", "logging.name"}  # about what is in a file
    assert said - others <= {*PATHS, "train.resume", "train.start_from"}


def test_a_foreign_adapter_reads_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backbone may be a name that is asked for on the hub."""
    monkeypatch.setenv("SECRET", "word")
    config = parse_config(values()).adapter_config().model_dump(mode="json")
    config["backbone"]["name_or_path"] = "org/$SECRET"
    found = AdapterConfig.model_validate(config, context=FOREIGN)
    assert found.backbone.name_or_path == "org/$SECRET"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.dir=runs/exp #2", "runs/exp #2"),
        ("run.dir=#1", "#1"),
        ("run.dir=runs/exp#2", "runs/exp#2"),
        ("run.dir='runs/exp #2'", "runs/exp #2"),
        ("run.dir=a # b # c", "a # b # c"),
    ],
)
def test_an_override_has_no_comments(file: Path, override: str, value: str) -> None:
    assert load_config(file, [override]).run.dir == value
    with pytest.raises(UserError, match=r"'train\.epochs': input should be a valid integer.* .got '3 #4'"):
        load_config(file, ["train.epochs=3 #4"])
    for text in ("[a, b] #c", "{a: b} # {c: d}"):
        with pytest.raises(UserError, match=r"the value of 'labels\.names' ends at a #: put the word"):
            load_config(file, [f"labels.names={text}"])
    assert load_config(file, ["labels.names=['#a', b#]"]).labels.names == ["#a", "b#"]
