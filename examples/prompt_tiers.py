"""Typed preferences in the prompt: the provider's, the user's, and what follows from facts about
the user."""

from fader import Fader

with Fader() as fader:
    tiers = {
        "provider": "Never give medical advice.",
        "user": "Answer in one short sentence.",
        "facts": "I am a cook.",
    }
    for rendering in ("meta", "tiers", "system", "principle"):
        result = fader.generate(
            "What is salt good for?",
            max_tokens=40,
            alignment={"preferences": {**tiers, "rendering": rendering}},
        )
        print(f"{rendering:10} {result.prompt_tokens:4} prompt tokens: {result.text.strip()}")
