"""Another name of :mod:`phicalc.serving.prediction`, for older scripts."""

from phicalc.serving.prediction import Prediction, predict, predict_file

__all__ = ["Prediction", "predict", "predict_file"]
