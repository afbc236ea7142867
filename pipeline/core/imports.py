"""Imports without what makes them slow.

The garbage collector would go through all that they make, again and again; and torch would import its compiler.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NO_COMPILER = "TORCHDYNAMO_DISABLE"


@contextmanager
def quick_imports() -> Iterator[None]:
    """Inside: imports only, before anything else is made: whatever is there then is kept out of the collector's sight.

    With torch and transformers these are 900,000 objects: a third of the processor time of a small run.
    """
    collecting, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if collecting:
            gc.enable()


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside: imports only, of what hands functions to torch.compile and does not have them called here.

    They stay as they are. Otherwise torch imports its compiler for them: two seconds of processor time.
    """
    asked = os.environ.get(_NO_COMPILER)
    os.environ[_NO_COMPILER] = "1"
    try:
        yield
    finally:
        if asked is None:
            del os.environ[_NO_COMPILER]
        else:
            os.environ[_NO_COMPILER] = asked
