"""`python -m pipeline`, the same as the command `ltune`."""

import atexit
import logging
import os
import sys

from pipeline.cli import main
from pipeline.distributed.launcher import world_size

if __name__ == "__main__":
    status = main()
    if world_size() > 1:
        # Threads of torch and DeepSpeed may still wait for the interpreter. Its own end would stop them, and where
        # that is inside C++ a rank that has done its work aborts ("terminate called without an active exception").
        atexit._run_exitfuncs()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
