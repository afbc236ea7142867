"""README.md of an adapter directory."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from pipeline.core.escapes import for_code_span, for_markdown
from pipeline.core.yaml import dump_yaml

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

_TEMPLATE = """\
---
{{ front_matter }}---

# L-Tuning adapter: {{ labels | length }} labels on {{ backbone | code }}

This is the small trained part of a text classifier ({{ method | code }}, {{ parameters }} parameters).
The frozen backbone is {{ backbone | code }}{% if revision %} (revision {{ revision | code }}){% endif %}; \
the best-scored label is the answer.

## Use

```python
from pipeline import LTuningClassifier

classifier = LTuningClassifier.from_pretrained("path/to/this/folder")
classifier.predict([{% if pair %}("first text", "second text"){% else %}"a text"{% endif %}])
```

or `python -m pipeline predict --adapter path/to/this/folder --input texts.txt`. The backbone is loaded from where it
was in training ({{ backbone | code }}) and must be the same: its fingerprint is checked.

## Labels

| label | hypothesis |
|---|---|
{% for name, hypothesis in labels -%}
| {{ name | cell }} | {{ hypothesis | cell }} |
{% endfor %}
{% if open_labels -%}
Other labels can be scored from their hypotheses alone (`with_labels`, `--labels`), untrained; expect less of them.
{% endif -%}

## Results

{% if results -%}
| split | texts | accuracy | macro F1 | Matthews | log-loss | calibration error |
|---|---|---|---|---|---|---|
{% for split, m in results.items() -%}
| {{ split }} | {{ m.n }} | {{ m.accuracy | number }} | {{ m.macro_f1 | number }} | {{ m.mcc | number }} | \
{{ m.log_loss | number }} | {{ m.ece | number }} |
| {{ split }}, majority baseline ({{ m.majority.label | cell }}) | {{ m.n }} | {{ m.majority.accuracy | number }} | \
{{ m.majority.macro_f1 | number }} | {{ m.majority.mcc | number }} | | |
{% endfor -%}
{% else -%}
Not evaluated yet: run `python -m pipeline evaluate`.
{% endif %}
## Licence

Without the backbone the adapter does nothing, and it was made from the backbone's outputs: the backbone's licence and
the training data's licence apply to its use. Texts longer than {{ max_length }} tokens are cut.
"""


def model_card(
    *,
    backbone: str,
    revision: str | None,
    method: str,
    parameters: int,
    labels: Sequence[tuple[str, str]],
    pair: bool,
    max_length: int,
    open_labels: bool,
    results: Mapping[str, Mapping[str, Any]],
) -> str:
    """Markdown with a hub-readable head. `labels`: (name, hypothesis); `open_labels`: others can be scored too;
    `results`: split -> `metrics.split_metrics`."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters.update(cell=for_markdown, code=for_code_span, number="{:.4f}".format)
    head = {"tags": ["text-classification", "l-tuning"], "pipeline_tag": "text-classification"}
    if _HUB_ID.fullmatch(backbone) and not Path(backbone).exists():
        head |= {"base_model": backbone}
    template = environment.from_string(_TEMPLATE)
    return template.render(
        front_matter=dump_yaml(head),
        backbone=backbone,
        revision=revision,
        method=method,
        parameters=f"{parameters:,}",
        labels=labels,
        pair=pair,
        max_length=max_length,
        open_labels=open_labels,
        results=results,
    )
