"""Adapters that share one backbone: which may, and label sets that are kept ready."""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.adapter.directory import load_adapter, save_adapter
from pipeline.core.errors import UserError
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.serving.adapters import Adapters, Choices, Key, check_name
from tests.support.served import METHODS, save_adapters
from tests.support.tiny import save_tiny

CPU = Choices(device="cpu")


def with_backbone(source: Path, target: Path, **keys: object) -> Path:
    """The same adapter with other keys of `backbone`."""
    adapter = load_adapter(source)
    backbone = adapter.config.backbone.model_copy(update=keys)
    save_adapter(target, adapter.method_state, adapter.config.model_copy(update={"backbone": backbone}), adapter.labels)
    return target


def test_what_cannot_share_the_backbone_is_refused_with_the_reason(adapters: dict[str, Path], tmp_path: Path) -> None:
    served = Adapters({"one": adapters["prefix"]}, CPU)

    def refusal(path: Path, name: str = "two") -> str:
        with pytest.raises(UserError) as caught:
            served.put(name, served.read(path, False))
        assert served.names == ["one"]
        return str(caught.value)

    assert "'two': it was made with backbone.dtype=bfloat16, this server's backbone has float32" in refusal(
        with_backbone(adapters["prompt"], tmp_path / "a", dtype="bfloat16")
    )
    assert "backbone.layers=1, this server's backbone has None" in refusal(
        with_backbone(adapters["prompt"], tmp_path / "b", layers=1)
    )
    assert "lora changes the backbone's own layers, with which 'one' reads" in refusal(adapters["lora"])
    assert "zero_shot scores labels by the backbone's output layer" in refusal(adapters["zero"])
    (tmp_path / "c").mkdir()
    save_tiny(tmp_path / "c" / "backbone", "llama_gqa", intermediate_size=48)
    other = save_adapters(tmp_path / "c", {"probe": METHODS["probe"]})["probe"]
    assert "adapter 'two': the adapter was made for another backbone" in refusal(other)
    assert "cannot be an adapter's name" in refusal(adapters["prompt"], "../x")
    with pytest.raises(UserError, match=r"is not an adapter directory \(there is no such folder\)"):
        served.read(tmp_path / "none", False)


def test_lora_is_served_alone(adapters: dict[str, Path]) -> None:
    served = Adapters({"lora": adapters["lora"]}, CPU)
    assert len(served["lora"].predict(["a goal"])[0].scores) == 3
    with pytest.raises(UserError, match="'probe': it cannot be served beside 'lora', which has changed"):
        served.put("probe", served.read(adapters["probe"], False))
    with pytest.raises(UserError, match="'lora': lora changes the backbone's own layers, with which 'probe' reads"):
        Adapters({"probe": adapters["probe"], "lora": adapters["lora"]}, CPU)


def test_adapters_come_and_go(adapters: dict[str, Path]) -> None:
    served = Adapters({"one": adapters["prefix"]}, CPU)
    before = served["one"]
    after = served.put("one", served.read(adapters["probe"], False))
    assert served["one"] is after is not before and served.names == ["one"]
    assert before.predict(["a goal"])[0].label in before.labels, "who holds it may go on"
    assert served.remove("one") and not served.remove("one") and served.names == []
    served.put("two", served.read(adapters["prompt"], False))
    assert served.names == ["two"]


def test_one_that_is_replaced_is_there_all_the_while(adapters: dict[str, Path]) -> None:
    served = Adapters({"one": adapters["prefix"], "two": adapters["probe"]}, CPU)
    seen = []

    class Watched(OrderedDict[Key, LoadedAdapter]):
        """What another thread would find while the old one's label sets are gone through."""

        def __iter__(self) -> Iterator[Key]:
            seen.append(served.names)
            return super().__iter__()

    served._sets = Watched()
    served.put("one", served.read(adapters["prompt"], False))
    assert seen == [["one", "two"]]


def test_label_sets_are_kept_as_far_as_they_fit(adapters: dict[str, Path]) -> None:
    served = Adapters({"one": adapters["prefix"]}, CPU, label_bytes=30_000)
    one = served["one"]
    assert served.known(one, ["war", "art"], {}) is None
    first = served.among(one, ["war", "art"], {})
    assert first.predict(["x"]) == one.with_labels(["war", "art"]).predict(["x"])
    assert served.among(one, ["war", "art"], {}) is first is served.known(one, ["war", "art"], {})
    assert served.known(one, ["war", "art"], {"war": "peace"}) is None, "other words"
    assert served.known(one, ["art", "war"], {}) is None, "another order"
    sizes = first.model.label_states.nbytes + first.model.label_start.nbytes  # type: ignore[union-attr]
    for number in range(30_000 // sizes + 1):
        served.among(one, ["war", f"art {number}"], {})
    assert served.known(one, ["war", "art"], {}) is None, "the oldest went"
    assert served.known(one, ["war", f"art {number}"], {}) is not None
    served.remove("one")
    assert served.known(one, ["war", f"art {number}"], {}) is None
    assert served.among(one, ["war", "art"], {}).labels == ["war", "art"]
    assert served.known(one, ["war", "art"], {}) is None, "nothing is kept for an adapter that is gone"


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "a\nb", "x" * 300, " a"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UserError, match="cannot be an adapter's name"):
        check_name(name)
