"""Commands on alignment vectors."""

from __future__ import annotations

from typing import Annotated

import typer

from fader.cli.show import AsJson, commands, print_json, screen, show, table
from fader.methods.vector import available, find, folders

app = commands("Alignment vectors: list and inspect.")


@app.command("list", epilog="Example: `fader vectors list --json`")
def list_vectors(as_json: AsJson = False) -> None:
    """The vectors that can be asked for by name."""
    rows = [{"name": name, "folder": str(folder)} for name, folder in available().items()]
    show("Vectors", rows, as_json, f"No vectors yet; put PEFT LoRA folders into one of {', '.join(map(str, folders()))}")


@app.command(epilog="Example: `fader vectors inspect ./my-lora --json`")
def inspect(name: Annotated[str, typer.Argument(help="A vector's name or folder.")], as_json: AsJson = False) -> None:
    """A vector's rank, its base model, and the norm of its difference in every layer."""
    vector = find(name)
    norms = vector.norms()
    head = {"name": vector.name, "rank": vector.rank, "base_model": vector.card.get("base_model"), "base_fingerprint": vector.base}
    head["norm"] = sum(norm * norm for norm in norms.values()) ** 0.5
    if as_json:
        print_json({**head, "norms": norms})
        return
    screen.print(head)
    table("Norms", [{"layer": module, "norm": round(norm, 4), "": "█" * round(30 * norm / max(norms.values()))} for module, norm in norms.items()])
