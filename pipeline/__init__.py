"""L-Tuning: label-driven prompt and prefix tuning of frozen language models, scaled by DeepSpeed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.classifier import LTuningClassifier

__version__ = "0.1.0"
__all__ = ["LTuningClassifier"]


def __getattr__(name: str) -> Any:
    """Imports the classifier at its first use: `import pipeline` must be quick and work without torch."""
    if name == "LTuningClassifier":
        from pipeline.classifier import LTuningClassifier

        return LTuningClassifier
    raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
