"""fader: a mixing desk for language models. Say what you want from the answers; the model answers that way while it decodes."""

from fader.engine.backbone import Backbone, load
from fader.engine.loop import Cancelled
from fader.fader import Fader, Likelihood, Result
from fader.methods.decode import Answer, Chunk
from fader.methods.vector import Vector
from fader.request import Alignment, Request, Sampling

__version__ = "0.1.0"
__all__ = ["Alignment", "Answer", "Backbone", "Cancelled", "Chunk", "Fader", "Likelihood", "Request", "Result", "Sampling", "Vector", "load"]
