"""The torch-free pipeline for ONNX restorers: preprocess, inference, postprocess.

`Pipeline` strings three services together that know nothing of one another. It needs NumPy, OpenCV,
Pillow and ONNX Runtime; ``docs/onnx.md`` describes it.
"""

from ..runtime.onnx_session import providers
from ..weights.onnx_models import MODELS, RestorerModel
from .inference import Inference, Inferred
from .options import PipelineOptions
from .pipeline import Pipeline, Services
from .postprocess import Composite, FaceResult, Postprocess
from .preprocess import Prepared, Preprocess
from .templates import TEMPLATES

__all__ = [
    "MODELS",
    "TEMPLATES",
    "Composite",
    "FaceResult",
    "Inference",
    "Inferred",
    "Pipeline",
    "PipelineOptions",
    "Postprocess",
    "Prepared",
    "Preprocess",
    "RestorerModel",
    "Services",
    "providers",
]
