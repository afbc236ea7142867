"""`ltune export` and `ltune push`: their options, and what they lead to."""

import argparse
from typing import Any

from pipeline.cli.common import add_adapter_options, add_backbone_options, add_common_options, add_debug_option
from pipeline.core.imports import quick_imports
from pipeline.core.output import ended_by_signals
from pipeline.distributed.device import announce_device

EXPORT = "convert a trained adapter for transformers or PEFT, or to one fixed injection per label"
PUSH = "put a trained adapter, or what `export` wrote, on the hub"


def add_hand_over_commands(commands: Any) -> None:
    """`commands`: the subparsers of the whole command line."""
    export = commands.add_parser("export", help=EXPORT, description=EXPORT)
    add_adapter_options(export)
    export.add_argument("--to", required=True, metavar="DIR", help="new folder")
    add_backbone_options(export)
    add_common_options(export)
    push = commands.add_parser("push", help=PUSH, description=PUSH)
    add_adapter_options(push, "adapter directory, or a folder that `export` wrote")
    push.add_argument("repository", metavar="ORG/NAME", help="repository on the hub, created if it does not exist")
    push.add_argument("--private", action="store_true", help="make it a private one")
    push.add_argument("--revision", metavar="BRANCH", help="branch to push to, created if it does not exist")
    push.add_argument("--message", default="Upload an L-Tuning adapter", metavar="TEXT", help="commit message")
    add_debug_option(push)


@ended_by_signals()
def export(options: argparse.Namespace) -> None:
    """Writes the folder."""
    announce_device()
    with quick_imports():
        from pipeline.stages import export as stage

    stage.export(
        options.run or options.adapter,
        options.to,
        device=options.device,
        backbone=options.backbone,
        trust_remote_code=options.trust_remote_code,
    )


def push(options: argparse.Namespace) -> None:
    """Uploads the folder."""
    from pipeline.adapter.hub import push as upload

    upload(
        options.run or options.adapter,
        options.repository,
        private=options.private,
        revision=options.revision,
        message=options.message,
    )
