"""L-Tuning: label-driven prompt and prefix tuning of frozen language models, scaled by DeepSpeed."""

__version__ = "0.1.0"
