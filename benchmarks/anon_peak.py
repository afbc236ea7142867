"""How far a process's own memory grows: of anonymous pages (RssAnon), which map no file."""

import threading
from pathlib import Path


class AnonPeak:
    """Growth of this process's RssAnon between entry and its peak, sampled every two milliseconds."""

    peak_bytes = 0

    def __enter__(self) -> "AnonPeak":
        self._start, self._stopped = _anon_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stopped.wait(0.002):
            self.peak_bytes = max(self.peak_bytes, _anon_bytes() - self._start)

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()


def _anon_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])
