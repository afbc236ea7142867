"""README.md of an exported folder: how the scores are computed without this program."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.escapes import for_code_span, for_markdown
from pipeline.core.yaml import dump_yaml
from pipeline.data.words import ONE_DAY

LOADED = {
    "transformers": """\
from transformers import AutoModelForTokenClassification, AutoTokenizer

folder = "path/to/this/folder"
model = AutoModelForTokenClassification.from_pretrained(folder).eval()""",
    "PEFT": """\
from peft import AutoPeftModelForTokenClassification
from transformers import AutoTokenizer

folder = "path/to/this/folder"
model = AutoPeftModelForTokenClassification.from_pretrained(folder, num_labels={count}).eval()""",
}
POOLED = {
    "last": "logits = logits[torch.arange(len(mask)), mask.sum(1) - 1]",
    "first": "logits = logits[:, 0]",
    "mean": "logits = (logits * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
}
_CARD = """\
---
{front_matter}---

# A classifier of texts for {library}

Trained with L-Tuning's method {method} on {backbone}. It gives each token of a text a score for each label; the text's
score is their value at the {where}. (A model for whole sequences would pool and score otherwise; this is exact.)

```python
import json

import torch
{loaded}
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
batch = tokenizer({texts}, {special}truncation=True, max_length={length}, padding=True, return_tensors="pt")
mask = batch["attention_mask"]
with torch.no_grad():
    logits = model(**batch).logits[:, -mask.shape[1] :]  # without the places of a prompt
{pooled}
labels = json.load(open(f"{{folder}}/ltune_export.json"))["labels"]
print([labels[best] for best in logits.argmax(1).tolist()])
```
{words}
`ltune_export.json` holds the labels, the pooling and what is done to a text before it is read.

| label |
|---|
{table}
"""


def export_card(settings: Mapping[str, Any], library: str, backbone: str) -> str:
    """Markdown. `settings`: those of ltune_export.json."""
    head: dict[str, Any] = {"tags": ["text-classification", "l-tuning"]}
    if library == "PEFT":
        head |= {"library_name": "peft"} | ({} if Path(backbone).exists() else {"base_model": backbone})
    is_pair = settings["pairs"] and not settings["template"]  # a template has made one text of both
    where = {"last": "last token", "first": "first token", "mean": "mean of all tokens"}
    words = (
        "\nPut those words around each text that were there in training: `template`, `chat` in `ltune_export.json`.\n"
        f"Where text and words were more than {settings['max_length']} tokens, the text was cut there and all words "
        "stayed: cut such a text before you put it into its words, since these lines cut the end, words and all.\n"
    )
    if settings["chat"]:
        words += (
            "The chat template writes the special tokens around a text itself, so that these lines add none; where it "
            f"names the day, that was {ONE_DAY}.\n"
        )
    if not settings["special_tokens"]:
        words += "A special token that is written in a text itself was read there as text; these lines read a token.\n"
    return _CARD.format(
        front_matter=dump_yaml(head),
        library=library,
        method=settings["method"],
        backbone=for_code_span(backbone),
        where=where[settings["pooling"]],
        loaded=LOADED[library].format(count=len(settings["labels"])),
        texts='["first text"], ["second text"]' if is_pair else '["a text", "another one"]',
        special="add_special_tokens=False, " if settings["chat"] else "",
        length=settings["max_length"],
        pooled=POOLED[settings["pooling"]],
        words=words if settings["template"] or settings["chat"] else "",
        table="\n".join(f"| {for_markdown(name)} |" for name in settings["labels"]),
    )
