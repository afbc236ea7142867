"""choose-reading: one pass over some texts, a table, files; the same on two ranks under ZeRO-3 and in 8 bits."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pipeline.cli import main
from pipeline.core.files import read_json
from pipeline.stages.choose_reading import choose_reading
from tests.families.models import tiny_model as family_model
from tests.support.tiny import save_tiny, tiny_tokenizer
from tests.support.tiny_run import TEXTS, tiny_config
from tests.support.worlds import run_worlds


def given(folder: Path, **sections: Any) -> str:
    (folder / "config.yaml").write_text(tiny_config(folder, **sections).to_yaml())
    return str(folder / "config.yaml")


def test_one_pass_a_table_and_files(tmp_path: Path, capsys: pytest.CaptureFixture, forwards: list[int]) -> None:
    config = given(tmp_path, backbone={"layers": 1}, method={"name": "probe"})
    assert main(["choose-reading", "--config", config, "--train-texts", "9", "--validation-texts", "1"]) == 0
    said, logs = capsys.readouterr().out, tmp_path / "run" / "logs"
    found = read_json(logs / "reading.json")
    assert (found["train_texts"], found["validation_texts"]) == (9, len(TEXTS)) and sum(forwards) == 9 + len(TEXTS)
    assert [(one["layers"], one["pooling"]) for one in found["probed"]] == [
        *((layers, pooling) for layers in (1, 2) for pooling in ("mean", "last", "first")),
        ([1, 2], max(found["probed"][:6], key=lambda one: (one["accuracy"], -one["log_loss"]))["pooling"]),
        ([1, 2], "statistics"),
    ]
    assert "accuracy on 3 validation texts of a probe fitted to 9 (standard error" in said
    assert "\nas configured: 1 layer, last: accuracy" in said
    assert f" backbone.pooling={found['best']['pooling']}\n" in said
    ElementTree.parse(logs / "reading.svg")
    forwards.clear()
    assert main(["choose-reading", "--config", config, "data.template='It says: {text}'"]) == 0
    assert read_json(logs / "reading.json")["train_texts"] == sum(forwards) - 6 == 13, "all there are"


def test_what_a_run_was_trained_on_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other texts are read beside it, and their data/ is gone afterwards."""
    config = given(tmp_path, method={"name": "probe"}, logging={"trackers": ["jsonl"]})
    command, run = ["choose-reading", "--config", config], tmp_path / "run"
    assert main(["run", "--config", config]) == 0

    def data() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in (run / "data").rglob("*")}

    assert main(command) == 0
    before, names = data(), {file.name for file in run.iterdir()}
    plain = read_json(run / "logs" / "reading.json")
    with caplog.at_level("INFO", "pipeline"):
        assert main([*command, "data.template='It says: {text}'"]) == 0
    assert "is what was trained on, and is kept" in caplog.text
    assert data() == before and {file.name for file in run.iterdir()} == names
    assert read_json(run / "logs" / "reading.json")["probed"] != plain["probed"], "of the other texts"
    assert main(["evaluate", "--config", config]) == 0 and main(["run", "--config", config]) == 0


def test_what_is_pasted_is_what_was_probed(tmp_path: Path) -> None:
    """The probe, trained as pasted, has the accuracy that was told."""
    config = given(tmp_path, method={"name": "probe", "prior": "never", "c": [3e-3, 1e-2, 3e-2]})
    assert main(["choose-reading", "--config", config, "backbone.pooling=statistics"]) == 0
    for one in read_json(tmp_path / "run" / "logs" / "reading.json")["probed"]:
        place = tmp_path / f"{one['layers']}-{one['pooling']}"
        pasted = [f"backbone.layers={one['layers']}", f"backbone.pooling={one['pooling']}", f"run.dir={place}"]
        assert main(["run", "--config", config, *pasted]) == 0
        figures = read_json(place / "evaluation" / "metrics.json")["validation"]
        assert figures["accuracy"] == pytest.approx(one["accuracy"])


def test_a_depth_that_no_config_may_ask_for_is_not_advised(tmp_path: Path) -> None:
    """Gemma 4, which has one table of embeddings for all layers, is read with all of them."""
    family_model("gemma4_text").save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    assert main(["choose-reading", "--config", given(tmp_path, method={"name": "probe"})]) == 0
    found = read_json(tmp_path / "run" / "logs" / "reading.json")["probed"]
    assert {str(one["layers"]) for one in found} == {"2", "[1, 2]"}


def test_a_depth_without_attention_is_advised_to_methods_that_need_none(tmp_path: Path) -> None:
    """The first layer of Qwen 3.5 is a recurrence: a model of it alone is read, but takes no prefix."""
    family_model("qwen3_5_text").save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    for method, depths in (("probe", {"1", "2", "[1, 2]"}), ("lt_prefix", {"2", "[1, 2]"})):
        config = given(tmp_path, method={"name": method}, backbone={"quantization": "int8"})
        assert main(["choose-reading", "--config", config]) == 0
        found = read_json(tmp_path / "run" / "logs" / "reading.json")["probed"]
        assert {str(one["layers"]) for one in found} == depths
    config = given(tmp_path, method={"name": "prompt", "tokens": 3}, train={"max_steps": 2})
    assert main(["run", "--config", config, "backbone.layers=1"]) == 0


def test_a_late_prefix_needs_attention_above_its_first_layer(tmp_path: Path) -> None:
    """Of four layers the second and the fourth have attention: from the third on, a prefix enters the fourth alone."""
    kinds = ["linear_attention", "full_attention"] * 2
    family_model("qwen3_5_text", num_hidden_layers=4, layer_types=kinds).save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    assert main(["choose-reading", "--config", given(tmp_path, method={"name": "lt_prefix", "first_layer": 2})]) == 0
    found = read_json(tmp_path / "run" / "logs" / "reading.json")["probed"]
    assert {one["layers"] for one in found if isinstance(one["layers"], int)} == {4}


@pytest.mark.parametrize(
    ("method", "refused"),
    [
        ({"name": "lt_prompt", "first_layer": 2}, "method.first_layer=2"),
        ({"name": "edit", "layers": [0, 2]}, "method.layers"),
        ({"name": "generated", "layers": [0, 2]}, "method.layers"),
    ],
)
def test_what_the_method_does_not_take_is_not_advised(
    tmp_path: Path, capsys: pytest.CaptureFixture, method: dict[str, Any], refused: str
) -> None:
    """Of six layers: too few for those that it names, or layers joined from below those where it begins."""
    save_tiny(tmp_path / "backbone", "llama_gqa", num_hidden_layers=6)
    config = given(tmp_path, method=method)
    assert main(["choose-reading", "--config", config]) == 0
    probed = read_json(tmp_path / "run" / "logs" / "reading.json")["probed"]
    capsys.readouterr()
    for layers in range(1, 7):
        assert main(["estimate", "--config", config, f"backbone.layers={layers}"]) == (0 if layers > 2 else 2)
    assert refused in capsys.readouterr().err
    for layers in {str(one["layers"]) for one in probed}:
        assert main(["estimate", "--config", config, f"backbone.layers={layers}"]) == 0, layers
    assert {one["layers"] for one in probed if isinstance(one["layers"], int)} == {3, 4, 5, 6}
    assert any(isinstance(one["layers"], list) for one in probed)


def test_what_cannot_be_chosen_from_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = given(tmp_path)
    for override, words in (
        ("data.validation=null", "choose-reading judges by validation texts: set data.validation, or data.split"),
        ("backbone.layers=3", "backbone.layers is 3, but the backbone has 2 layers"),
    ):
        assert main(["choose-reading", "--config", config, override]) == 2
        assert words in capsys.readouterr().err
    for wrong in ("0", "some"):
        with pytest.raises(SystemExit) as end:
            main(["choose-reading", "--config", config, "--train-texts", wrong])
        assert end.value.code == 2 and "--train-texts" in capsys.readouterr().err
    assert not (tmp_path / "run" / "logs" / "reading.json").exists()


def chosen(folder: Path) -> list[Any]:
    """On every rank of a world: what is found with ZeRO-3, and with ZeRO-3 and 8-bit weights."""
    found = []
    for quantization in ("none", "int8"):
        sections = {"backbone": {"quantization": quantization}, "engine": {"threads": 1}, "evaluate": {"batch_size": 3}}
        choice = choose_reading(tiny_config(folder, **sections))
        found.append([[one.layers, one.pooling, one.accuracy, one.log_loss] for one in choice.probed])
        unset_hf_deepspeed_config()
    return found


def test_two_ranks_find_the_same(tmp_path: Path) -> None:
    save_tiny(tmp_path / "backbone", "llama_gqa", num_hidden_layers=3)
    worlds = run_worlds("tests.stages.test_choose_reading:chosen", [1, 2], tmp_path, 300)
    [alone], [first, second] = worlds[1], worlds[2]
    assert first == second
    for one, other in zip(alone, first, strict=True):
        assert [each[:2] for each in one] == [each[:2] for each in other]
        assert len(one) > 9 and one[-1][0] == [1, 2, 3]
        for ours, theirs in zip(one, other, strict=True):
            assert ours[2:] == pytest.approx(theirs[2:], abs=1e-4)
