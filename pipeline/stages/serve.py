"""Answers requests over HTTP, with any number of adapters on one backbone, until a signal ends it."""

import logging
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.adapter.directory import adapter_folder
from pipeline.core.errors import UserError

PACKAGES = ("fastapi", "greenlet", "prometheus_client", "uvicorn")
"""Of the extra `serve`."""
LEAST_TOKEN = 16
"""Characters of a token that cannot be guessed."""


def serve(
    adapters: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    token_file: str | None = None,
    admin_token_file: str | None = None,
    batch_tokens: int = 16384,
    max_wait_ms: float = 5.0,
    limits: Mapping[str, int] | None = None,
    grace: float = 60.0,
    **choices: Any,
) -> None:
    """Serves adapter or run directories, each as PATH or NAME=PATH, on `host` and `port` (0: any).

    Files of tokens: `token_file` what clients must show, `admin_token_file` what adding and removing adapters takes.
    A forward pass reads at most `batch_tokens`, and waits at most `max_wait_ms` for requests that are on their way.
    `limits`: fields of `serving.limits.Limits`; `choices`: those of `serving.adapters.Choices`. At SIGTERM what was
    accepted is answered, for at most `grace` seconds. The log is JSON lines on standard error.
    Raises UserError where the extra `serve` is not installed, for adapters that cannot share a backbone, and for a
    place where it cannot listen.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"serve needs packages that are not installed ({', '.join(missing)}): pip install '.[serve]'")
    from pipeline.serving.adapters import Adapters, Choices
    from pipeline.serving.guard import Tokens
    from pipeline.serving.limits import Limits
    from pipeline.serving.server import JsonLines
    from pipeline.serving.server import serve as listen
    from pipeline.serving.service import Service

    _check_seconds("--max-wait-ms", max_wait_ms)
    _check_seconds("--grace", grace)
    paths = named(adapters)
    tokens = Tokens(*(None if file is None else _read_token(file) for file in (token_file, admin_token_file)))
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines())
    loaded = Adapters(paths, Choices(**choices))
    service = Service(loaded, Limits(**(limits or {})), positions=batch_tokens, longest_wait=max_wait_ms / 1000)
    listen(service, tokens, host=host, port=port, grace=grace)


def named(adapters: Sequence[str]) -> dict[str, Path]:
    """The directories by the names that the options give them. UserError for names that are given twice."""
    found: dict[str, Path] = {}
    for option in adapters:
        name, _, path = option.rpartition("=") if not Path(option).exists() else ("", "", option)
        folder = Path(path).resolve()
        is_part_of_run = adapter_folder(folder.parent) == folder and folder.name == "adapter"
        name = name or (folder.parent if is_part_of_run else folder).name
        if name in found:
            raise UserError(f"--adapter {option!r}: another one is called '{name}' too: give it a name, as in NAME=DIR")
        found[name] = Path(path)
    return found


def _read_token(file: str) -> str:
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"'{file}' has to hold a token of at least {LEAST_TOKEN} ASCII characters, without spaces")
    return token


def _check_seconds(option: str, value: float) -> None:
    if not (math.isfinite(value) and 0 <= value <= 1e6):
        raise UserError(f"{option}={value} is not a time: give a number from 0")
