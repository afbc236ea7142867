"""Where the padding of a batch's sequences stands."""

from torch import Tensor


def real_first(mask: Tensor) -> Tensor:
    """Places [B, S] that put the real tokens of each row of a mask [B, S] first.

    Relative positions (DeBERTa) and sliding windows count places, so padding inside would be seen; and padding before
    the text has nothing to attend to, which eager attention can turn into NaN.
    """
    return mask.logical_not().int().argsort(dim=1, stable=True)


def take(sequence: Tensor, places: Tensor) -> Tensor:
    """Each row of `sequence` [B, S] or [B, S, M] at `places` [B, T] -> [B, T] or [B, T, M]."""
    if sequence.ndim == 3:
        places = places[..., None].expand(-1, -1, sequence.shape[-1])
    return sequence.gather(1, places)
