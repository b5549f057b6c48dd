"""One question under five alignments, in one batch, side by side."""

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel

from fader import Fader

QUESTION = "Why is the sky blue?"
ALIGNMENTS: dict[str, dict[str, object]] = {
    "bare model": {},
    "provider and user tiers": {"prompt": {"provider": "Answer in at most two sentences.", "user": "I am seven years old."}},
    "guide: like a pirate": {"guides": [{"kind": "contrast", "principle": "Answer like a pirate."}]},
    "guide: poetic, away from dry": {
        "guides": [{"kind": "contrast", "principle": "Answer as a poet, with images.", "against": "Answer drily.", "weight": 1.5}]
    },
    "tiers and a guide": {
        "prompt": {"user": "I like short answers."},
        "guides": [{"kind": "contrast", "principle": "Be warm and encouraging.", "weight": 1.5}],
    },
}


def main() -> None:
    """Answer and show; all requests run together in one batch."""
    console = Console()
    texts = ["..."] * len(ALIGNMENTS)
    width = max(36, console.width // 3 - 2)

    def view() -> Group:
        panels = [Panel(text.strip() or "...", title=name, width=width) for name, text in zip(ALIGNMENTS, texts, strict=True)]
        return Group(f"[bold]{QUESTION}[/]", Columns(panels))

    requests = [{"prompt": QUESTION, "alignment": alignment} for alignment in ALIGNMENTS.values()]
    with Fader() as fader, Live(view(), console=console, refresh_per_second=8) as live:
        for place, chunk in fader.stream_batch(requests, max_tokens=70, repetition_penalty=1.1):
            texts[place] = ("" if texts[place] == "..." else texts[place]) + chunk.text
            live.update(view())


if __name__ == "__main__":
    main()
