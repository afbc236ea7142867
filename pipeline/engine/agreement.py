"""Whether all ranks of a run were started alike: ranks with different settings would train a mixture."""

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.core.artefact import sha256_of
from pipeline.core.errors import SHOWN, UserError, some
from pipeline.core.settings import flat
from pipeline.distributed.ranks import Ranks
from pipeline.engine.deepspeed_config import deepspeed_file

PACKAGES = ("torch", "transformers", "deepspeed", "accelerate")


def check_alike(parts: Mapping[str, Any], ranks: Ranks) -> None:
    """Raises UserError, on every rank, where a part is not the same on all; it names the part and the ranks.

    Collective.
    """
    mine = {key: str(value) for key, value in parts.items()}
    hashes = ranks.gather(sha256_of(*(text for item in sorted(mine.items()) for text in item)))
    if len(set(hashes)) == 1:
        return
    seen = ranks.gather(mine)
    keys = dict.fromkeys(key for there in seen for key in there)
    phrases = [_phrase(key, [there.get(key, "absent") for there in seen]) for key in keys]
    different = [phrase for phrase in phrases if phrase]
    raise UserError(f"{some(different)}: start every rank with the same command and program")


def parts_of_run(sections: Mapping[str, Mapping[str, Any]], deepspeed: str) -> dict[str, Any]:
    """Everything that must be the same on all ranks: the config's sections, DeepSpeed file, program and libraries."""
    return {
        **flat(sections),
        f"the content of {deepspeed}": deepspeed_file(deepspeed).read_text("utf-8"),
        **_program(),
    }


@lru_cache(maxsize=1)
def _program() -> dict[str, str]:
    package = Path(__file__).parents[1]
    files = sorted(package.rglob("*.py"))
    code = sha256_of(*(text for file in files for text in (str(file.relative_to(package)), file.read_text("utf-8"))))
    return {"the program's code": code, **{f"the version of {name}": version(name) for name in PACKAGES}}


def _phrase(key: str, values: list[str]) -> str:
    """`train.learning_rate is 0.01 on rank 0 and 0.02 on ranks 1, 2`; nothing where all values are the same."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    if len(ranks) == 1:
        return ""
    return f"{key} is " + " and ".join(f"{_short(value)} on {_named(where)}" for value, where in ranks.items())


def _short(value: str) -> str:
    return value if len(value) <= 60 and "\n" not in value else f"{sha256_of(value)[:12]}…"


def _named(ranks: list[int]) -> str:
    more = f" and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:SHOWN]))}{more}"
