"""Token guidance without training: the same model told and not told a principle, at three
strengths, in one batch."""

from fader import Fader

WEIGHTS = (0.0, 1.0, 2.0)

with Fader() as fader:
    guides = [
        [{"kind": "contrast", "principle": "Answer like a pirate.", "weight": weight}]
        for weight in WEIGHTS
    ]
    requests = [
        {"prompt": "Tell me about the sea.", "alignment": {"guides": guide}} for guide in guides
    ]
    for weight, result in zip(WEIGHTS, fader.batch(requests, max_tokens=30), strict=True):
        print(f"weight {weight}: {result.text.strip()}")
