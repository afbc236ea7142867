"""Methods that train inside the backbone: LoRA as PEFT has it, also on 8-bit weights, and full fine-tuning.

covers methods/full, methods/lora
"""

from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel
from transformers.pytorch_utils import Conv1D

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.loading import load_backbone
from pipeline.backbone.quantized import QuantizedLinear
from pipeline.core.errors import UserError
from pipeline.data.batches import collate
from pipeline.distributed.ranks import Ranks
from pipeline.estimate.inventory import Workload, take_inventory
from pipeline.methods.full import FullConfig
from pipeline.methods.lora import LoRAConfig
from pipeline.methods.model import LTuningModel
from tests.families.models import tiny_model as family_model
from tests.support.tiny import FAMILIES, PAD_ID, save_tiny, tiny_model

K, RANK = 3, 2
ALL = torch.arange(K)


@pytest.fixture
def texts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(4, 300, (length,), generator=generator).tolist()} for length in (5, 9, 2)]
    return collate(rows, PAD_ID)


def model_on(network: nn.Module, config: LoRAConfig | FullConfig) -> LTuningModel:
    facts = facts_of(network.config)
    torch.manual_seed(0)
    states, mask = torch.zeros(K, 1, facts.hidden_size), torch.ones(K, 1, dtype=torch.bool)
    pooling = "last" if facts.is_decoder else "mean"
    model = LTuningModel(FrozenBackbone(network, facts), config.build(facts, 1, K), states, mask, pooling)
    for name, parameter in model.inside().items():
        if "lora_" in name:  # the second matrix would start at zero
            parameter.data.normal_(std=0.3)
    return model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_lora_trains_two_matrices_beside_each_target(family: str, texts: dict[str, Tensor]) -> None:
    before = {name: value.clone() for name, value in tiny_model(family).state_dict().items()}
    model = model_on(tiny_model(family), LoRAConfig(rank=RANK))
    targets = [module for module in model.backbone.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    expected = sum(RANK * (module.in_features + module.out_features) for module in targets)
    assert targets and sum(parameter.numel() for parameter in model.inside().values()) == expected
    model(**texts, candidates=ALL.expand(3, K)).square().sum().backward()
    for name, parameter in model.trainable().items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    frozen = {name.replace("base_layer.", ""): value for name, value in model.backbone.model.state_dict().items()}
    assert all(torch.equal(frozen[name], value) for name, value in before.items())
    taken = take_inventory(
        tiny_model(family).config,
        BackboneConfig(name_or_path="none", dtype="float32"),
        Workload(rows=2, text_tokens=8, injected_tokens=0, injects=None),
        model.method,
    )
    assert taken.trained_elements == expected and taken.activation_bytes > 0


@pytest.mark.parametrize("family", ["llama_gqa", "bert"])
def test_lora_equals_peft_on_the_same_weights(family: str, texts: dict[str, Tensor]) -> None:
    model = model_on(tiny_model(family), LoRAConfig(rank=RANK)).double()
    config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=RANK, lora_alpha=16)
    theirs = peft.get_peft_model(tiny_model(family), config).double().eval()
    own = {name.replace("backbone.model.", "base_model.model."): value for name, value in model.inside().items()}
    missing = theirs.load_state_dict(own, strict=False)
    assert not missing.unexpected_keys and not any("lora_" in name for name in missing.missing_keys)
    found = model.backbone(texts["input_ids"], texts["attention_mask"])
    expected = theirs(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]).last_hidden_state
    real = texts["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["llama_gqa", "bert", "gpt2"])
def test_lora_on_all_layers_is_scaled_by_the_root_of_its_rank(family: str, texts: dict[str, Tensor]) -> None:
    """Stabilized, with alpha / sqrt(rank) in the place of alpha, it is what it was."""
    stable = model_on(tiny_model(family), LoRAConfig(rank=4, alpha=6, targets="all", rank_stabilized=True))
    plain = model_on(tiny_model(family), LoRAConfig(rank=4, alpha=12, targets="all"))
    kinds = (nn.Linear, Conv1D)
    linear = sum(isinstance(module, kinds) for module in tiny_model(family).modules())
    assert sum("lora_A" in name for name in plain.inside()) == linear
    plain.load_inside(dict(stable.inside()))
    plain.method.load_state_dict(stable.method.state_dict())
    found, expected = (model(**texts, candidates=ALL.expand(3, K)) for model in (stable, plain))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["llama4_text", "phimoe"])
def test_lora_on_all_layers_leaves_the_choice_of_experts_alone(kind: str, texts: dict[str, Tensor]) -> None:
    """Their router is a linear layer by its class, and gives more than PEFT's layer around it could hand on."""
    model = model_on(family_model(kind), LoRAConfig(rank=RANK, targets="all"))
    assert model.inside() and not any("router" in name for name in model.inside())
    assert model(**texts, candidates=ALL.expand(3, K)).isfinite().all()


def test_lora_on_8_bit_weights(tmp_path: Path, texts: dict[str, Tensor]) -> None:
    save_tiny(tmp_path, "llama_gqa")
    config = BackboneConfig(name_or_path=str(tmp_path), quantization="int8", dtype="float32")
    network = load_backbone(config, zero_config=None, device=torch.device("cpu"), ranks=Ranks.alone())
    model = model_on(network, LoRAConfig(rank=RANK))
    layer = network.layers[1].self_attn.q_proj
    assert isinstance(layer.base_layer, QuantizedLinear)
    x = torch.randn(4, 16)
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 16 / RANK * x @ first.T @ second.T)
    codes = layer.base_layer.weight.clone()
    model(**texts, candidates=ALL.expand(3, K)).square().sum().backward()
    for name, parameter in model.trainable().items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert torch.equal(layer.base_layer.weight, codes)


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe", "jamba", "mamba"])
def test_lora_on_all_layers_takes_those_beside_experts_and_recurrences(kind: str, texts: dict[str, Tensor]) -> None:
    """PEFT would take the names of dense layers for the experts' matrices, and refuse some of a recurrence."""
    linear = {name for name, module in family_model(kind).named_modules() if isinstance(module, nn.Linear)}
    called = {name for name in linear if not name.endswith("dt_proj")}
    model = model_on(family_model(kind), LoRAConfig(rank=RANK, targets="all"))
    model(**texts, candidates=ALL.expand(3, K)).square().sum().backward()
    found = {
        name.partition(".lora_A")[0].removeprefix("backbone.model.") for name in model.inside() if "lora_A" in name
    }
    assert found == called
    for name, parameter in model.trainable().items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_lora_on_a_mixture_of_experts_needs_no_targets() -> None:
    names = list(model_on(family_model("mixtral"), LoRAConfig(rank=RANK)).inside())
    assert len(names) == 8 and all("q_proj" in name or "v_proj" in name for name in names)


@pytest.mark.parametrize(
    ("kind", "targets", "stray"),
    [
        ("bert", ["nothing"], "nothing"),
        ("bert", ["query", "valeu"], "valeu"),
        ("qwen3_moe", ["q_proj", "down_proj"], "down_proj"),  # of experts: a matrix in a parameter
        ("jamba", ["dt_proj"], "dt_proj"),  # its owner multiplies its weight itself
        ("phimoe", ["router"], "router"),
    ],
)
def test_targets_that_do_not_exist_are_refused(kind: str, targets: list[str], stray: str) -> None:
    with pytest.raises(UserError, match=rf"method\.targets: .*'{stray}': set all, or some of the linear layers \w+, "):
        model_on(family_model(kind), LoRAConfig(targets=targets))


def test_full_fine_tuning_trains_every_weight(texts: dict[str, Tensor]) -> None:
    model = model_on(tiny_model("llama_gqa"), FullConfig())
    assert len(model.inside()) == len(list(model.backbone.parameters()))
    model(**texts, candidates=ALL.expand(3, K)).square().sum().backward()
    for name, parameter in model.trainable().items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", ["llama_gqa", "bert", "gpt2", "falcon", "opt"])
@pytest.mark.parametrize(("share", "layers"), [(0.5, 4), (0.25, 3)])
def test_a_share_of_each_kind_is_trained(family: str, share: float, layers: int, texts: dict[str, Tensor]) -> None:
    network = tiny_model(family, num_hidden_layers=layers)
    model = model_on(network, FullConfig(share=share))
    counts: dict[str, list[int]] = {"attention": [0, 0], "other": [0, 0], "norm": [0, 0]}
    stack = next(module for module in network.modules() if isinstance(module, nn.ModuleList))
    inside = {id(parameter) for parameter in stack.parameters()}
    for name, module in stack.named_modules():
        is_matrix, is_norm = isinstance(module, nn.Linear | Conv1D), "norm" in type(module).__name__.lower()
        if is_matrix or is_norm:
            kind = "norm" if is_norm else "attention" if "attn" in name or "attention" in name else "other"
            trained = {parameter.requires_grad for parameter in module.parameters()}
            assert len(trained) == 1  # a bias goes with its matrix
            counts[kind][0] += trained.pop()
            counts[kind][1] += 1
    assert all(found == round(share * count) and count >= layers for found, count in counts.values()), counts
    assert all(parameter.requires_grad for parameter in network.parameters() if id(parameter) not in inside)
    model(**texts, candidates=ALL.expand(3, K)).square().sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in stack.parameters())
    workload = Workload(rows=2, text_tokens=8, injected_tokens=0, injects=None)
    config = BackboneConfig(name_or_path="none", dtype="float32")
    taken = take_inventory(network.config, config, workload, model.method)
    inside_model = {name: value.numel() for name, value in model.inside().items() if ".pooler." not in name}
    assert taken.trained_elements == sum(inside_model.values())  # it is built without one


def test_a_share_is_drawn_by_its_number_and_all_is_what_it_was() -> None:
    def trained(**keys: float) -> set[str]:
        torch.rand(1)  # what else was drawn does not count
        return set(model_on(tiny_model("bert", num_hidden_layers=3), FullConfig(**keys)).inside())

    half = trained(share=0.5)
    assert half == trained(share=0.5) != trained(share=0.5, draw=1)
    assert trained(share=1.0) == trained() > half
    with pytest.raises(ValueError, match=r"method\.draw has a meaning only with method\.share below 1"):
        FullConfig(draw=1)
    with pytest.raises(UserError, match=r"method\.share=0\.5: the layers of AlbertModel do not stand in one list"):
        FullConfig(share=0.5).build(facts_of(tiny_model("bert").config), 1, K).attach(AlbertModel(AlbertConfig()))


def test_a_trained_state_of_another_backbone_is_refused() -> None:
    model = model_on(tiny_model("bert"), LoRAConfig(rank=RANK))
    state = dict(model.inside())
    model.load_inside(state)
    state.popitem()
    with pytest.raises(UserError, match="train again"):
        model.load_inside(state)
