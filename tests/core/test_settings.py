"""Rules of all config classes: finite numbers, and lists that name nothing twice."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.config import RunConfig, parse_config
from pipeline.core.errors import UserError
from pipeline.estimate.case import build_case
from pipeline.methods import METHOD_NAMES
from tests.support.tiny import tiny_model
from tests.support.tiny_run import estimated
from tests.test_config import values


def number_keys(model: BaseModel, kind: type, prefix: str = "") -> Iterator[str]:
    """Keys whose annotation allows this kind of number."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from number_keys(value, kind, f"{prefix}{name}.")
        elif field.annotation in (kind, kind | None):
            yield prefix + name


def all_keys(kind: type) -> list[tuple[str, str]]:
    """(method, key), a key of every method's config once."""
    found: dict[str, str] = {}
    for method in METHOD_NAMES:
        for key in number_keys(parse_config(values(method={"name": method})), kind):
            found.setdefault(f"{method}/{key}" if key.startswith("method.") else key, method)
    return [(method, name.rpartition("/")[2]) for name, method in found.items()]


def given(method: str, key: str, value: Any) -> RunConfig:
    section, leaf = key.split(".")
    sections = values(method={"name": method})
    sections[section] = sections.get(section, {}) | {leaf: value}
    return parse_config(sections)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "-inf"])
@pytest.mark.parametrize(("method", "key"), all_keys(float))
def test_no_number_is_infinite_or_nan(method: str, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"'{key}': input should be"):
        given(method, key, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 0.5])
@pytest.mark.parametrize(("method", "key"), all_keys(int))
def test_counts_are_whole_and_not_negative(method: str, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"'{key}': input should be"):
        given(method, key, value)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(("method", "key"), all_keys(int) + all_keys(float))
def test_a_switch_is_no_number(method: str, key: str, value: bool) -> None:
    with pytest.raises(UserError, match=f"{key.partition('.')[2]} cannot be true or false"):
        given(method, key, value)


@pytest.mark.parametrize(("method", "key"), [("edit", "method.layers"), ("probe", "method.c"), ("lora", "data.split")])
def test_a_switch_in_a_list_is_no_number(method: str, key: str) -> None:
    with pytest.raises(UserError, match=f"{key.partition('.')[2]} cannot be true or false"):
        given(method, key, [True])


@pytest.mark.parametrize("key", ["train.resume", "train.start_from", "data.train", "backbone.name_or_path"])
def test_a_path_is_not_empty(key: str) -> None:
    with pytest.raises(UserError, match=f"'{key}': string should have at least 1 character"):
        given("lora", key, "")


def test_there_are_numbers_to_look_at() -> None:
    floats, ints = {key for _, key in all_keys(float)}, {key for _, key in all_keys(int)}
    assert {"train.learning_rate", "backbone.int8_threshold", "method.dropout", "method.init_std"} <= floats
    assert {"run.seed", "train.batch_size", "data.max_length", "method.tokens", "engine.timeout_seconds"} <= ints


@pytest.mark.parametrize(
    ("key", "value", "twice"),
    [
        ("evaluate.splits", ["test", "test"], "test"),
        ("train.preemption_signals", ["SIGTERM", "SIGINT", "SIGTERM"], "SIGTERM"),
        ("logging.trackers", ["jsonl", "jsonl"], "jsonl"),
        ("method.targets", ["query", "value", "query"], "query"),
    ],
)
def test_nothing_is_given_twice(key: str, value: list[str], twice: str) -> None:
    with pytest.raises(UserError, match=f"'{key}': '{twice}' is given twice"):
        given("lora", key, value)
    assert given("lora", key, value[:1]).model_dump()[key.split(".")[0]][key.split(".")[1]] == value[:1]


@pytest.mark.parametrize(
    ("option", "value"),
    [("bandwidth", value) for value in (math.nan, math.inf, 0.0, -1.0)]
    + [("world_size", value) for value in (0, -1, 10**7, 10**400)],
)
def test_options_of_the_estimate(option: str, value: float) -> None:
    options: dict[str, Any] = {"world_size": 1, "gpu": "h200", option: value}
    with pytest.raises(UserError, match=f"^--{option.replace('_', '-')} "):
        build_case(estimated(parse_config(values())), tiny_model("llama").config, **options)
