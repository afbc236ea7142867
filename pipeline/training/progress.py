"""What a person sees of training as it goes: a bar on a terminal or in a notebook, else a line every minute."""

import logging
import time
from datetime import timedelta

from tqdm import tqdm

from pipeline.core import progress

log = logging.getLogger(__name__)


class Progress:
    """Steps, loss, speed and the time left. `shown`: on this rank."""

    def __init__(self, step: int, total_steps: int, texts_per_step: int, *, shown: bool) -> None:
        self.total_steps, self.texts_per_step = total_steps, texts_per_step
        self.bar = tqdm(total=total_steps, initial=step, desc="train", unit="step", disable=progress.is_hidden(shown))
        self._speaks = shown and self.bar.disable
        self._said_step, self._said_at = step, time.monotonic()

    def update(self, step: int, loss: float) -> None:
        """After every step."""
        self.bar.update()
        seconds = time.monotonic() - self._said_at
        if self._speaks and seconds >= progress.EVERY_SECONDS:
            done, left = step - self._said_step, self.total_steps - step
            log.info(
                "train: step %s of %s, loss %.4f, %.1f texts/s, %s left",
                *(f"{step:,}", f"{self.total_steps:,}", loss, done * self.texts_per_step / max(seconds, 1e-9)),
                timedelta(seconds=round(left * seconds / done)),
            )
            self._said_step, self._said_at = step, time.monotonic()

    def tell(self, loss: float, texts_per_second: float) -> None:
        """Figures beside the bar."""
        self.bar.set_postfix(loss=f"{loss:.4f}", examples_per_second=f"{texts_per_second:.0f}")

    def close(self) -> None:
        self.bar.close()
