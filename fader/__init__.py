"""fader aligns language models at inference time. Say what you want from the answers; the model
answers that way while it decodes."""

from fader.answer import Answer, Chunk, Likelihood, Result
from fader.endpoint import Endpoint
from fader.engine.backbone import TorchBackbone
from fader.engine.loading import load
from fader.engine.protocols import Backbone
from fader.engine.running import Busy, Cancelled, Running
from fader.fader import Fader
from fader.request import Alignment, Request, Sampling
from fader.rewards.judge import LLMJudge
from fader.rewards.reward import Resources
from fader.vectors.vector import Vector

__version__ = "0.1.0"
__all__ = [
    "Alignment",
    "Answer",
    "Backbone",
    "Busy",
    "Cancelled",
    "Chunk",
    "Endpoint",
    "Fader",
    "LLMJudge",
    "Likelihood",
    "Request",
    "Resources",
    "Result",
    "Running",
    "Sampling",
    "TorchBackbone",
    "Vector",
    "load",
]
