"""Every baseline through all stages, by the same commands as label tuning.

covers stages/run, engine/models
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.cli import main
from pipeline.core.errors import UserError
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages.run import run
from tests.families.models import tiny_model as family_model
from tests.support.processes import launch, run_script
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.support.tiny_run import TEXTS, tiny_config

SHORT = {"max_steps": 4, "batch_size": 4, "learning_rate": 0.05, "eval_every": 4, "log_every": 1}
METHODS = {
    "probe": {},
    "prompt": {"tokens": 4, "init": "labels"},
    "prefix": {"tokens": 4, "reparametrisation": True},
    "p_tuning": {"tokens": 4, "encoder": "lstm", "encoder_width": 6},
    "decomposed": {"kind": "dept", "tokens": 4, "rank": 2},
    "generated": {"tokens": 4, "rank": 2},
    "late": {"name": "generated", "first_layer": 1, "rank": 2, "pooling": "adaptive_max", "activation": "relu"},
    "edit": {"kind": "loreft", "rank": 2},
    "lora": {"rank": 2},
    "full": {"share": 0.5},
    "zero_shot": {},
    "majority": {},
}
OPEN = ("zero_shot",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    save_tiny(folder / "backbone", "llama_gqa", AutoModelForCausalLM)
    return folder


@pytest.mark.parametrize("sessions", [0, 1])
def test_what_is_fitted_in_the_place_of_a_training_by_steps_keeps_no_log_of_it(
    tmp_path: Path, sessions: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its report would show the other method's curve and cost, and a comparison its seconds."""
    unlabelled = {"unlabelled": str(tmp_path / "test.tsv"), "test": None}
    sections: dict[str, Any] = {"data": unlabelled, "train": SHORT | {"self_training": sessions}}
    run(tiny_config(tmp_path, method={"name": "prompt", "tokens": 2}, **sections))
    sections |= {"backbone": {"int8_threshold": 0}, "logging": {"name": "mine"}}
    config = tiny_config(tmp_path, method={"name": "probe"}, **sections)
    logged = [config.run_dir.metrics_log, config.run_dir.cost_file]
    assert all(file.is_file() for file in logged)
    assert "without effect" not in caplog.text
    with caplog.at_level("INFO", "pipeline"):
        run(config, overwrite=True)
    assert not any(file.exists() for file in logged)
    for keys, reason in (
        (
            "train.batch_size, train.eval_every, train.learning_rate, train.log_every, train.max_steps",
            "method probe takes",
        ),
        ("backbone.int8_threshold", "backbone.quantization is not int8"),
        ("logging.name", "logging.trackers names neither wandb nor mlflow"),
    ):
        assert f"train: without effect: {keys} ({reason}" in caplog.text


@pytest.mark.parametrize("name", METHODS)
def test_trains_evaluates_and_predicts(folder: Path, name: str) -> None:
    before = (folder / "backbone" / "model.safetensors").read_bytes()
    config = tiny_config(
        folder,
        run={"dir": str(folder / name)},
        method={"name": name} | METHODS[name],
        train=SHORT | {"objective": "candidates"},
        logging={"trackers": ["jsonl"]},
    )
    figures = run(config)["test"]
    state = load_file(config.run_dir.adapter / "adapter.safetensors")
    # The majority's counts stay whole numbers.
    assert {tensor.dtype for tensor in state.values()} <= {torch.int64 if name == "majority" else torch.float32}
    assert before == (folder / "backbone" / "model.safetensors").read_bytes()
    if config.method.takes_steps:
        lines = [json.loads(line) for line in config.run_dir.metrics_log.read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        assert len(losses) == 4 and np.isfinite(losses).all()
    if name == "majority":
        assert figures["accuracy"] == figures["majority"]["accuracy"]
    classifier = LoadedAdapter.load(config.run_dir.adapter, "cpu")
    assert len(classifier.predict(["a goal", "shares fell"])[0].scores) == 3
    if name in OPEN:
        assert len(classifier.with_labels(["sea", "air"]).predict(["a goal"])[0].scores) == 2
    else:
        with pytest.raises(UserError, match="knows only the labels of its training"):
            classifier.with_labels(["sea", "air"])


def test_zero_shot_asks_the_language_model(folder: Path) -> None:
    """Scores by evaluate and predict are what transformers' own model gives, one text and one label at a time."""
    config = tiny_config(folder, run={"dir": str(folder / "words")}, method={"name": "zero_shot"})
    run(config)
    model = tiny_model("llama_gqa", AutoModelForCausalLM).double()
    tokenizer = tiny_tokenizer()

    def likelihood(text: str, hypothesis: str) -> float:
        behind = tokenizer(f" {hypothesis}", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([tokenizer(text)["input_ids"] + behind])
        logs = model(ids).logits[0, -len(behind) - 1 : -1].log_softmax(-1)
        return logs.gather(1, ids[0, -len(behind) :, None]).mean().item()

    template = config.labels.template
    scored = pd.read_parquet(config.run_dir.predictions_file).query("split == 'test'")
    texts = pd.read_csv(folder / "test.tsv", sep="\t")["text"]
    for label in TEXTS:
        expected = [likelihood(text, template.format(label=label)) for text in texts]
        np.testing.assert_allclose(scored[f"score/{label}"], expected, rtol=1e-5)
    classifier = LoadedAdapter.load(config.run_dir.adapter, "cpu")
    found = classifier.with_labels(["sea", "long walks"], {"sea": "It swims."}).predict(["a goal"])[0].scores
    words = {"sea": "It swims.", "long walks": template.format(label="long walks")}
    assert found == pytest.approx({name: likelihood("a goal", text) for name, text in words.items()}, rel=1e-5)


def test_hypotheses_that_do_not_fit_behind_a_text_are_refused(folder: Path) -> None:
    config = tiny_config(
        folder, run={"dir": str(folder / "full-text")}, method={"name": "zero_shot"}, data={"max_length": 125}
    )
    with pytest.raises(UserError, match=r"only 3 positions left: set a smaller data\.max_length"):
        run(config)


@pytest.mark.parametrize("name", ["lora", "full", "edit", "late"])
def test_what_is_trained_in_the_backbone_resumes_bit_for_bit(folder: Path, name: str) -> None:
    """From the second of four steps, ZeRO-3's partitions of the backbone's own weights included."""
    adapters = []
    for run_name in ("whole", "resumed"):
        config = tiny_config(
            folder,
            run={"dir": str(folder / f"{name}-{run_name}")},
            method={"name": name} | METHODS[name],
            train=SHORT | {"save_every": 2},
            logging={"trackers": ["jsonl"]},
        )
        run(config)
        if run_name == "resumed":
            shutil.rmtree(config.run_dir.adapter_final)
            shutil.rmtree(config.run_dir.checkpoints / "step-000004")
            (config.run_dir.checkpoints / "LATEST").write_text("step-000002\n")
            run(config)
        adapters.append(load_file(config.run_dir.adapter_final / "adapter.safetensors"))
    whole, resumed = adapters
    assert whole.keys() == resumed.keys()
    assert any(key.startswith(("backbone.", "of_layers.", "generators.")) for key in whole)
    for key, tensor in whole.items():
        assert torch.equal(tensor, resumed[key]), key


def script(folder: Path) -> dict[str, Any]:
    """Half of all weights, and on sharded 8-bit ones all else, on one rank and two, same global batch."""
    statuses: dict[str, Any] = {}
    save_tiny(folder / "backbone", "llama_gqa", AutoModelForCausalLM, tie_word_embeddings=True)
    family_model("qwen2_moe").save_pretrained(folder / "experts")
    tiny_tokenizer().save_pretrained(folder / "experts")
    beside_experts = ["backbone.quantization=int8_weight_only", f"backbone.name_or_path={folder / 'experts'}"]
    int8 = "backbone.quantization=int8"
    edits = [int8, "method.kind=loreft", "backbone.gradient_checkpointing=true"]
    for name, options in (
        ("lora", [int8, "method.rank=2"]),
        ("experts", [*beside_experts, "method={name: lora, rank: 2, targets: [down_proj]}"]),
        ("full", ["method.share=0.5"]),
        ("prefix", [int8, "method={name: prefix, start: hypotheses, tokens: 40}"]),
        ("edit", edits),
        (
            "generated",
            [int8, "method={name: generated, source: sentence, hypercomplex: 2, rank: 4, activation: rational}"],
        ),
        ("late", [edits[0], edits[2], "method={name: generated, source: attended, first_layer: 1, rank: 2}"]),
        ("zero_shot", [int8]),
    ):
        config = tiny_config(
            folder,
            method={"name": {"late": "generated", "experts": "lora"}.get(name, name)},
            train=SHORT | {"objective": "candidates", "batch_size": 2, "gradient_accumulation": 2},
            logging={"trackers": ["jsonl"]},
            engine={"threads": 1},
        )
        (folder / f"{name}.yaml").write_text(config.to_yaml())
        for world in (1, 2):
            shares = [] if world == 1 else ["train.gradient_accumulation=1"]
            arguments = ["run", "--config", str(folder / f"{name}.yaml"), f"run.dir={folder / name}-{world}"]
            log = folder / f"{name}-{world}.log"
            statuses[f"{name}-{world}"] = launch([*arguments, *options, *shares], log, world=world)
    return statuses


def test_two_ranks_work_inside_the_backbone_as_one(tmp_path: Path) -> None:
    statuses = run_script("tests.stages.test_baselines:script", tmp_path, 300)
    assert all(status == 0 for ended in statuses.values() for status in ended), statuses
    for name in ("lora", "experts", "full", "prefix", "edit", "generated", "late"):
        logs = [(tmp_path / f"{name}-{world}" / "logs" / "metrics.jsonl").read_text() for world in (1, 2)]
        losses = [[line["loss"] for line in map(json.loads, log.splitlines()) if "loss" in line] for log in logs]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
        one, two = (load_file(tmp_path / f"{name}-{world}" / "adapter" / "adapter.safetensors") for world in (1, 2))
        assert any(key.startswith(("backbone.", "injector.", "of_layers.", "bottleneck.")) for key in one)
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-2, atol=1e-3)
    one, two = (tmp_path / f"zero_shot-{world}" / "evaluation" / "predictions.parquet" for world in (1, 2))
    pd.testing.assert_frame_equal(pd.read_parquet(one), pd.read_parquet(two), rtol=1e-5)


def test_pairs_train_a_classifier_too(folder: Path) -> None:
    train = SHORT | {"objective": "pairs"}
    config = tiny_config(folder, run={"dir": str(folder / "pairs")}, method={"name": "prefix"}, train=train)
    assert run(config)["test"]["n"] == 9


def test_the_plan_counts_one_reading_per_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, steps, words in (
        ("prefix", 4, "1 reading(s) per text, 4 injected tokens each"),
        ("majority", 4, "steps: none, the method takes none"),
        ("lt_prompt", 4, "3 reading(s) per text"),
        ("lt_prompt", 0, "steps: none, train.max_steps is 0"),
    ):
        method, train = {"name": name} | METHODS.get(name, {}), {"objective": "candidates", "max_steps": steps}
        config = tiny_config(folder, run={"dir": str(folder / "plan")}, method=method, train=train)
        (folder / "plan.yaml").write_text(config.to_yaml())
        assert main(["run", "--config", str(folder / "plan.yaml"), "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert words in printed
        assert f"{config.method.name}: " in printed


def test_a_prompt_that_leaves_no_room_is_refused(folder: Path) -> None:
    config = tiny_config(folder, run={"dir": str(folder / "long")}, method={"name": "prompt", "tokens": 100})
    with pytest.raises(UserError, match=r"100 injected tokens and data\.max_length=64"):
        run(config)
