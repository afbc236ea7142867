"""The kind of device that DeepSpeed is to expect."""

import os


def announce_device() -> None:
    """Without a GPU, says so before DeepSpeed is imported, which else warns that it found none."""
    import torch  # late: not every command needs it

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
