"""Backbones and models ready to run: sharded by ZeRO-3 or whole on each rank, as the DeepSpeed config says."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.adapter.directory import Adapter
from pipeline.adapter.label_states import LabelStates
from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.cpu_speed import SLOW, bfloat16_slowdown
from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.loading import load_backbone
from pipeline.backbone.pooling import resolve_pooling
from pipeline.core.errors import about
from pipeline.data.tokenizer import encode
from pipeline.distributed.device import trim_heap
from pipeline.distributed.ranks import Ranks
from pipeline.distributed.zero import give_back, is_partitioned, keeps_shares, no_leaf_modules, whole
from pipeline.engine.backbone import Backbone
from pipeline.engine.deepspeed_config import zero_stage
from pipeline.engine.kept_model import KeptModel
from pipeline.methods.base import TuningMethod, Vocabulary
from pipeline.methods.model import LTuningModel, without_inside

log = logging.getLogger(__name__)


def load_frozen(
    accelerator: Accelerator,
    ranks: Ranks,
    backbone: Backbone,
    *,
    output_layer: bool = False,
    written: bool = False,
) -> FrozenBackbone:
    """The frozen backbone, its parameters partitioned already if the DeepSpeed config asks for ZeRO-3. Collective.

    Its weights are read from its files once for all models that are made of one `backbone`, one after the other.
    `output_layer`: a decoder's too, for `FrozenBackbone.likelihood`. `written`: its frozen weights will be changed.
    """
    config = backbone.config
    if accelerator.device.type == "cpu" and config.dtype == "bfloat16" and ranks.is_main:
        _warn_if_slow()
    resolved = accelerator.state.deepspeed_plugin.deepspeed_config
    zero_config = resolved if zero_stage(resolved) == 3 else None
    device = accelerator.device
    circumstances = (zero_config and zero_config["zero_optimization"], device, ranks.size, output_layer)
    kept, backbone.kept = backbone.kept, None
    if kept is None or kept.circumstances != circumstances:
        kept = None  # frees it before the other is read
        model = _loaded(accelerator, ranks, backbone, zero_config, output_layer=output_layer)
        if not written and (zero_config is None or keeps_shares(zero_config)):
            backbone.kept = KeptModel(model, circumstances)
    else:
        model = kept.model(zero_config, device)
        backbone.kept = None if written else kept
    facts = facts_of(model.config, config)
    return FrozenBackbone(model, facts, gradient_checkpointing=config.gradient_checkpointing)


def _loaded(
    accelerator: Accelerator,
    ranks: Ranks,
    backbone: Backbone,
    zero_config: dict[str, Any] | None,
    *,
    output_layer: bool,
) -> PreTrainedModel:
    """The model of its files. Collective."""
    config = backbone.config
    with about(f"backbone.name_or_path {config.name_or_path!r}"):
        return load_backbone(
            config,
            zero_config=zero_config,
            device=accelerator.device,
            ranks=ranks,
            output_layer=output_layer,
            opened=backbone.opened(ranks),
            read_config=lambda: backbone.model_config,
        )


def _warn_if_slow() -> None:
    times = bfloat16_slowdown()
    if times > SLOW:
        log.warning("bfloat16 takes %.1f times as long as float32 on this CPU: set backbone.dtype=float32", times)


def build_model(
    accelerator: Accelerator,
    config: BackboneConfig,
    backbone: FrozenBackbone,
    method: TuningMethod,
    labels: LabelStates,
    continuations: Tensor | None = None,
) -> LTuningModel:
    """Backbone, method and label states as one model, on the device and in the compute dtype.

    Where some parameters are partitioned already, DeepSpeed 0.19.8 neither casts nor moves the others.
    """
    device, dtype = accelerator.device, config.torch_dtype
    pooling = resolve_pooling(config.pooling, backbone.facts)
    states, mask = labels.states.to(device, dtype), labels.mask.to(device)
    continuations = None if continuations is None else continuations.to(device)
    start = None if labels.start is None else labels.start.to(device, dtype)
    judge = labels.judged_by(method.to(device, dtype), device)
    model = LTuningModel(backbone, judge, states, mask, pooling, continuations, start, labels.mean)
    for parameter in model.inside().values():
        if not is_partitioned(parameter):
            parameter.data = parameter.data.to(device, dtype)
    return model


def trained_model(accelerator: Accelerator, ranks: Ranks, known: Backbone, adapter: Adapter) -> nn.Module:
    """An adapter on its backbone, to call without gradients. Collective. UserError where its tensors do not fit."""
    method, labels = adapter.config.method, adapter.labels
    backbone = load_frozen(
        accelerator, ranks, known, output_layer=method.reads_hypotheses, written=method.trains_backbone
    )
    continuations = adapter.continuations(known.tokenizer, backbone.facts, labels.hypotheses)
    built = adapter.build_method(backbone.facts)
    model = build_model(accelerator, known.config, backbone, built, labels, continuations)
    load_inside(model, adapter.method_state)
    return prepare_inference(accelerator, model, known.config.torch_dtype)


def load_trained(model: LTuningModel, state: Mapping[str, Tensor]) -> None:
    """Copies a trained state into a model that no engine holds yet. Every rank must call this."""
    model.method.load_state_dict(without_inside(state))
    load_inside(model, state)


def load_inside(model: LTuningModel, state: Mapping[str, Tensor]) -> None:
    """The backbone's part of that alone, sharded or not."""
    model.load_inside(state, partial(whole, written=True))


def vocabulary_of(backbone: FrozenBackbone, tokenizer: PreTrainedTokenizerBase, labels: LabelStates) -> Vocabulary:
    """The words that methods start from. Every rank must look up the same embeddings."""
    return Vocabulary(
        tokens=sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)),
        encode=lambda text: encode(tokenizer, [text], add_special_tokens=False)["input_ids"][0],
        embed=partial(_embed, backbone),
        hypotheses=labels.all_in_one,
    )


def _embed(backbone: FrozenBackbone, token_ids: Tensor) -> Tensor:
    """Input embeddings of tokens [N] -> [N, H] float32 on the CPU."""
    embedding = backbone.model.get_input_embeddings()
    weight = embedding.get_parameter("weight")
    # The module is called, since some families scale what it holds.
    with whole(weight), torch.no_grad():
        return embedding(token_ids.to(weight.device)).float().cpu()


def prepare_inference(accelerator: Accelerator, module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module to call without gradients: inside a ZeRO-3 engine, or cast and moved where nothing is sharded."""
    module.eval()
    if zero_stage(accelerator.state.deepspeed_plugin.deepspeed_config) == 3:
        engine = build_engine(accelerator, module)
        engine.eval()
        return engine
    with exact_buffers(module):
        return module.to(accelerator.device, dtype)


def build_engine(accelerator: Accelerator, module: nn.Module, *optimizer: Optimizer) -> Any:
    """DeepSpeed's engine of `module`, or engine and wrapped `optimizer`; fp32 buffers of a backbone stay exact.

    DeepSpeed 0.19.8 has one kernel compiled when an engine is first built, of an optimizer that is not used here, for
    which PyTorch imports its compiler: a second in each process. Meanwhile it compiles nothing.
    """
    with patch_environment(TORCHDYNAMO_DISABLE="1"), exact_buffers(module), no_leaf_modules():
        return accelerator.prepare(module, *optimizer)


def release(accelerator: Accelerator, module: nn.Module) -> None:
    """Ends the use of a model: its engine is destroyed, its weights are given back.

    Else a comparison, which has an engine per stage and cell, would hold all their backbones.
    """
    accelerator.free_memory()
    give_back(module)
    trim_heap()


@contextmanager
def exact_buffers(module: nn.Module) -> Iterator[None]:
    """Keeps fp32 buffers of frozen backbones (rotary frequencies) out of a cast of the whole module to bf16."""
    backbones = [part for part in module.modules() if isinstance(part, FrozenBackbone)]
    saved = [backbone.float_buffers() for backbone in backbones]
    yield
    for backbone, buffers in zip(backbones, saved, strict=True):
        backbone.restore_buffers(buffers)
