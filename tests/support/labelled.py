"""Small labelled files, and configs that read them."""

from pipeline.config import parse_config

ROWS = [("a gripping film", "good"), ("the jokes fall flat", "bad"), ("never lets go", "good"), ("so thin", "bad")]


def config_in(folder, backbone, run=None, labels=None, **data):
    """Of a run in `folder`, on its train.tsv."""
    data = {"train": str(folder / "train.tsv"), "max_length": 64} | data
    return parse_config(
        {
            "run": {"dir": str(folder / "run")} | (run or {}),
            "backbone": {"name_or_path": str(backbone)},
            "data": data,
            "labels": labels or {},
            "method": {"name": "lt_prefix", "head": "label_aware"},
        }
    )


def write(path, rows, header="text\tlabel"):
    path.write_text("\n".join([header, *map("\t".join, rows)]) + "\n", encoding="utf-8")
    return str(path)
