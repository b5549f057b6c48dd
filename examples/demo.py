"""One question under five alignments, another under a vector at four strengths and in a mixture:
one batch, side by side."""

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel

from fader import Fader

Panels = list[tuple[str, str, dict[str, object]]]
QUESTION = "Why is the sky blue?"
ALIGNMENTS: Panels = [
    ("base model", QUESTION, {}),
    (
        "provider and user tiers",
        QUESTION,
        {
            "preferences": {
                "provider": "Answer in at most two sentences.",
                "user": "I am seven years old.",
            }
        },
    ),
    (
        "guide: like a pirate",
        QUESTION,
        {"guides": [{"kind": "contrast", "principle": "Answer like a pirate."}]},
    ),
    (
        "guide: poetic, away from dry",
        QUESTION,
        {
            "guides": [
                {
                    "kind": "contrast",
                    "principle": "Answer as a poet, with images.",
                    "against": "Answer drily.",
                    "weight": 1.5,
                }
            ]
        },
    ),
    (
        "tiers and a guide",
        QUESTION,
        {
            "preferences": {"user": "I like short answers."},
            "guides": [
                {"kind": "contrast", "principle": "Be warm and encouraging.", "weight": 1.5}
            ],
        },
    ),
]
ASKED = "My knee hurts after running. What should I do?"
STRENGTHS: Panels = [
    (f"vector: medical = {strength:g}", ASKED, {"vectors": {"medical": strength}})
    for strength in (-1.0, 0.0, 0.5, 1.0)
]
MIXTURE: Panels = [
    ("vectors: medical = 0.5, warm = 1", ASKED, {"vectors": {"medical": 0.5, "warm": 1.0}})
]


def main() -> None:
    """Answer and show; all requests run together in one batch."""
    console = Console()
    panels = [*ALIGNMENTS, *STRENGTHS, *MIXTURE]
    texts = ["..."] * len(panels)
    width = max(36, console.width // 3 - 2)

    def view() -> Group:
        parts: list[RenderableType] = []
        for question in (QUESTION, ASKED):
            shown = [
                Panel(text.strip() or "...", title=name, width=width)
                for (name, q, _), text in zip(panels, texts, strict=True)
                if q == question
            ]
            parts += [f"[bold]{question}[/]", Columns(shown)]
        return Group(*parts)

    requests = [{"prompt": question, "alignment": alignment} for _, question, alignment in panels]
    with (
        Fader() as fader,
        Live(view(), console=console, refresh_per_second=8, vertical_overflow="visible") as live,
    ):
        for place, chunk in fader.stream_batch(requests, max_tokens=70, repetition_penalty=1.1):
            texts[place] = ("" if texts[place] == "..." else texts[place]) + chunk.text
            live.update(view())


if __name__ == "__main__":
    main()
