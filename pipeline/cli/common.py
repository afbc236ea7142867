"""Options that several commands have, and the kinds of their values."""

import argparse


def add_common_options(command: argparse.ArgumentParser) -> None:
    """Of every command that loads a backbone."""
    command.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that ships with the backbone"
    )
    command.add_argument("--debug", action="store_true", help="show tracebacks and every log line")


def positive(word: str) -> int:
    """A number from 1."""
    count = int(word)
    if count < 1:
        raise ValueError
    return count
