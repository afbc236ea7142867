"""The command `serve` and its options."""

import argparse

from pipeline.cli.common import add_backbone_options, add_common_options, positive
from pipeline.core.imports import quick_imports
from pipeline.distributed.device import announce_device
from pipeline.serving.limits import Limits

SERVE = "answer requests over HTTP: any number of adapters on one backbone"
SERVE_LIMITS = {
    "texts": "texts of a request",
    "labels": "labels that a request brings along",
    "tokens": "tokens that are read for a request, a text's once for each label",
    "body": "bytes of a request's body",
    "waiting": "texts in the queue; beyond that, requests are refused",
}
"""Fields of `serving.limits.Limits` that have an option."""


def add_serve_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--adapter",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="adapter or run directory, by default called as its run directory is; may be repeated",
    )
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    command.add_argument("--port", type=int, default=8080, help="port; 0: any free one (default %(default)s)")
    command.add_argument(
        "--token-file", metavar="FILE", help="holds the bearer token that clients must show (default: none)"
    )
    command.add_argument(
        "--admin-token-file",
        metavar="FILE",
        help="holds the token for adding and removing adapters (default: nobody may)",
    )
    command.add_argument(
        "--batch-tokens", type=positive, default=16384, metavar="N", help="most per forward pass (default %(default)s)"
    )
    command.add_argument(
        "--max-wait-ms", type=float, default=5.0, metavar="MS", help="longest wait for more (default %(default)g)"
    )
    for name, what in SERVE_LIMITS.items():
        default = getattr(Limits, name)
        command.add_argument(
            f"--max-{name}", type=positive, default=default, metavar="N", help=f"{what} (default {default})"
        )
    command.add_argument(
        "--grace",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds after SIGTERM to answer the requests already accepted (default %(default)g)",
    )
    command.add_argument(
        "--calibrated", action="store_true", help="probabilities with the temperature fitted on the validation split"
    )
    add_backbone_options(command, "adapters'")
    add_common_options(command)


def serve(options: argparse.Namespace) -> None:
    announce_device()
    with quick_imports():
        from pipeline.stages.serve import serve as listen

    listen(
        options.adapter,
        host=options.host,
        port=options.port,
        token_file=options.token_file,
        admin_token_file=options.admin_token_file,
        batch_tokens=options.batch_tokens,
        max_wait_ms=options.max_wait_ms,
        limits={name: getattr(options, f"max_{name}") for name in SERVE_LIMITS},
        grace=options.grace,
        device=options.device,
        backbone=options.backbone,
        calibrated=options.calibrated,
        trust_remote_code=options.trust_remote_code,
    )
