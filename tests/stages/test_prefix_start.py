"""A prefix that starts from the hypotheses: a text is read as one behind them, by plain transformers' own cache.

covers methods/prefix, stages/encode_labels
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache

from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.methods.text_classifier import TextClassifier
from pipeline.stages.run import run
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.support.tiny_run import label_states_of, tiny_config

AS_GOOD_AS_NONE = {"max_steps": 1, "batch_size": 4, "learning_rate": 1e-30}
TEXT = "a goal in the last minute"


def config_of(folder: Path, tokens: int) -> RunConfig:
    method = {"name": "prefix", "start": "hypotheses", "tokens": tokens}
    return tiny_config(folder, run={"dir": str(folder / str(tokens))}, method=method, train=AS_GOOD_AS_NONE)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])  # with rotary positions, and with learned ones
def test_a_text_is_first_read_as_one_behind_all_hypotheses(tmp_path: Path, family: str) -> None:
    save_tiny(tmp_path / "backbone", family)
    network, tokenizer = tiny_model(family), tiny_tokenizer()
    text = torch.tensor([tokenizer(TEXT)["input_ids"]])
    for tokens in (10, 60):  # a part of the hypotheses, and more than all of them
        config = config_of(tmp_path, tokens)
        run(config)
        loaded = LoadedAdapter.load(config.run_dir.adapter, "cpu")
        assert loaded.adapter.labels.all_in_one is None and loaded.adapter.labels.start is None
        words = [tokenizer(hypothesis)["input_ids"] for hypothesis in loaded.adapter.labels.hypotheses]
        ids = [token for word in words for token in word]
        assert 10 < len(ids) < 60
        cache = DynamicCache(config=network.config)
        with torch.no_grad():
            network(torch.tensor([(ids * 60)[:tokens]]), past_key_values=cache)
            expected = network(text, past_key_values=cache).last_hidden_state
            assert isinstance(loaded.model.method, TextClassifier)
            found = loaded.model.backbone(text, torch.ones_like(text), loaded.model.method.inject(1))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_it_starts_from_is_kept_for_it_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path, 10)
    run(config)
    states = label_states_of(config)
    assert states.all_in_one is not None and states.start is None
    trained = load_file(config.run_dir.adapter_final / "adapter.safetensors")
    assert torch.equal(trained["injector.embedding.weight"], states.all_in_one)
    probe = RunConfig.model_validate(config.model_dump() | {"method": {"name": "probe"}})
    assert label_states_of(probe).all_in_one is None
    longer = RunConfig.model_validate(config.model_dump() | {"method": config.method.model_copy(update={"tokens": 11})})
    with pytest.raises(UserError, match="all_in_one was '10 tokens', now '11 tokens'; run encode-labels again"):
        label_states_of(longer)
    unknown = RunConfig.model_validate(config.model_dump() | {"method": {"name": "lt_prefix"}})
    with pytest.raises(UserError, match=r"start was absent, now 'prefix'"):
        label_states_of(unknown)
    with pytest.raises(UserError, match=r"120 injected tokens and data\.max_length=64"):
        run(config_of(tmp_path, 120))
