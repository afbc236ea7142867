"""Options that several commands have, and the kinds of their values."""

import argparse


def add_common_options(command: argparse.ArgumentParser) -> None:
    """Of every command that loads a backbone."""
    command.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that ships with the backbone"
    )
    add_debug_option(command)


def add_debug_option(command: argparse.ArgumentParser) -> None:
    """Of every command."""
    command.add_argument("--debug", action="store_true", help="show tracebacks and every log line")


def add_adapter_options(command: argparse.ArgumentParser, folder: str = "adapter directory") -> None:
    """Of commands about one trained adapter; `folder`: what else than a run directory it may lie in."""
    source = command.add_mutually_exclusive_group(required=True)
    # torchrun takes --run for an option of its own.
    source.add_argument("--run", "--run-dir", metavar="DIR", help="run directory; its adapter/ is used")
    source.add_argument("--adapter", metavar="DIR", help=folder)


def add_backbone_options(command: argparse.ArgumentParser, whose: str = "adapter's") -> None:
    """Of commands that put trained adapters on their backbone."""
    command.add_argument("--backbone", metavar="PATH", help=f"where the {whose} backbone is, if it has moved")
    command.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")


def positive(word: str) -> int:
    """A number from 1."""
    count = int(word)
    if count < 1:
        raise ValueError
    return count
