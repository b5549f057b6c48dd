"""fader: a mixing desk for language models. Say what you want from the answers; the model answers
that way while it decodes."""

from fader.engine.backbone import Backbone, load
from fader.engine.loop import Cancelled
from fader.fader import Fader, Likelihood, Result
from fader.methods.decode import Answer, Chunk
from fader.methods.judge_reward import Judge
from fader.methods.rewards import Declared
from fader.methods.vector import Vector
from fader.request import Alignment, Request, Sampling

__version__ = "0.1.0"
__all__ = [
    "Alignment",
    "Answer",
    "Backbone",
    "Cancelled",
    "Chunk",
    "Declared",
    "Fader",
    "Judge",
    "Likelihood",
    "Request",
    "Result",
    "Sampling",
    "Vector",
    "load",
]
