"""What a guide added to each token, and how likely a given answer is under the guided policy."""

from fader import Fader

ALIGNMENT = {
    "guides": [{"kind": "contrast", "principle": "Answer like a pirate.", "plausible": None}]
}

with Fader() as fader:
    answer = fader.generate(
        "Tell me about the sea.", max_tokens=6, logprobs=0, alignment=ALIGNMENT
    ).answers[0]
    for token in answer.logprobs or ():
        print(
            f"{token.token!r:12} {token.logprob:7.2f}   the guide added"
            f" {token.guides['0:contrast']:+.2f}"
        )
    for text in ("Arr, the sea be wild!", "The sea is a large body of water."):
        bare, guided = (
            fader.score("Tell me about the sea.", text),
            fader.score("Tell me about the sea.", text, alignment=ALIGNMENT),
        )
        print(f"{text!r}: {bare.mean:.2f} per token bare, {guided.mean:.2f} guided")
