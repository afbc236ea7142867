"""Temperature scaling (Guo et al. 2017, section 4.2): one number that makes the probabilities honest, not the labels.

The temperature is fitted on the validation split by *evaluate*, and kept in calibration.json beside the adapter.
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from pipeline.core.artefact import sha256_of
from pipeline.core.checksums import sha256_of_file
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.settings import Settings
from pipeline.evaluation.metrics import expected_calibration_error, log_loss, tempered_softmax

FILE = "calibration.json"
LOWEST, HIGHEST = 0.02, 50.0
"""Bounds of the temperature."""


class Calibration(Settings):
    """calibration.json"""

    temperature: float = Field(ge=LOWEST, le=HIGHEST, allow_inf_nan=False)
    """The scores are divided by it before the softmax; above 1 where the scores are too sure of themselves."""
    texts: int = Field(ge=1)
    """Validation texts it was fitted on."""
    sha256: str | None = None
    """Of the two, and of the tensors beside them that it was fitted for. None: of a version that did not keep it."""


def fit_temperature(scores: NDArray, truth: NDArray) -> Calibration:
    """The temperature with the lowest log-loss over the texts and one text more: scores [N, K], truth [N] (indices).

    The one more is the mean of all, with a label drawn at random. Without it, a dozen texts that are all labelled
    rightly would make every probability 0 or 1. In 1 / temperature the log-loss is convex, so there is one minimum.
    """
    scores, rows = scores.astype(np.float64), np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        logs = log_softmax(scores / np.exp(log_temperature), axis=1)
        return -float(logs[rows, truth].sum() + logs.mean())

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return Calibration(temperature=float(np.exp(found.x)), texts=len(truth))


def calibrated_metrics(scores: NDArray, truth: NDArray, calibration: Calibration) -> dict[str, float]:
    """What the temperature makes of `log_loss` and `ece`, ready for JSON."""
    probabilities = tempered_softmax(scores, calibration.temperature)
    return {
        "temperature": calibration.temperature,
        "log_loss": log_loss(probabilities, truth),
        "ece": expected_calibration_error(probabilities, truth),
    }


def keep_calibration(adapter: Path, calibration: Calibration) -> None:
    """Writes calibration.json beside the adapter, untouched if it is the same."""
    with suppress(UserError):  # it is damaged, or not there
        if load_calibration(adapter).model_copy(update={"sha256": None}) == calibration:
            return
    write_json(adapter / FILE, calibration.model_dump() | {"sha256": _digest(adapter, calibration)})


def load_calibration(adapter: Path) -> Calibration:
    """Raises UserError where there is none, a damaged one, or another adapter's."""
    file = adapter / FILE
    if not file.is_file():
        raise UserError(f"'{adapter}' is not calibrated ({FILE} is missing): run evaluate with a validation split")
    try:
        found = Calibration.model_validate(read_json(file))
    except ValidationError as error:
        raise UserError(f"'{file}' is damaged ({error.errors()[0]['msg']}): run evaluate again") from error
    if found.sha256 not in (None, _digest(adapter, found)):
        raise UserError(f"'{file}' is not what was written for this adapter: copy it again, or run evaluate again")
    return found


def _digest(adapter: Path, calibration: Calibration) -> str:
    # SHA256SUMS is older than the calibration, and decides by its own content whether evaluation/ is current.
    tensors = map(sha256_of_file, sorted(adapter.glob("*.safetensors")))
    return sha256_of(str(calibration.temperature), str(calibration.texts), *tensors)
