"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fader.cli.show import AsJson, Model, commands, print_json, screen
from fader.engine import builtin
from fader.methods.vector import user_folder
from fader.training.data import read_pairs
from fader.training.data import split as of_split

app = commands("Train vectors (needs the extra `train`).")


@app.command(
    "vector", epilog="Example: `fader train vector tax --data pairs.jsonl`, then `fader generate '…' --align '{\"vectors\": {\"tax\": 0.5}}'`"
)
def train_vector_command(
    name: Annotated[str, typer.Argument(help="What requests will call the vector.")],
    data: Annotated[str, typer.Option(help="JSONL of pairs (prompt, chosen, rejected) or of levels (query, avoidance, generic, expert).")],
    out: Annotated[str | None, typer.Option(help="Folder to write; left out: the user's vectors folder, where requests look.")] = None,
    model: Model = builtin.NAME,
    split: Annotated[str | None, typer.Option(help="Train on the records of this split only.")] = None,
    negate: Annotated[bool, typer.Option("--negate", help="Swap chosen and rejected.")] = False,
    rank: int = 8,
    epochs: float = 2.0,
    beta: float = 2.0,
    learning_rate: float = 2e-4,
    sft_epochs: float = 0.0,
    per_token: Annotated[bool, typer.Option(help="Compare log-probabilities per token; off is plain DPO (use beta 0.1).")] = True,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Train an alignment vector from preference pairs: DPO with LoRA, resumable. About six minutes for 120 pairs on two cores."""
    try:
        from fader.training.vector import Recipe, train_vector
    except ModuleNotFoundError as error:
        raise ValueError(f"training needs {error.name}: pip install 'fader[train]'") from error

    pairs = read_pairs(data)
    pairs = of_split(pairs, split) if split else pairs
    pairs = [pair.swapped for pair in pairs] if negate else pairs
    recipe = Recipe(
        rank=rank, alpha=2 * rank, beta=beta, normalize=per_token, learning_rate=learning_rate, epochs=epochs, sft_epochs=sft_epochs, seed=seed
    )
    folder = Path(out) if out else user_folder() / name
    vector = train_vector(name, pairs, folder, recipe, model)
    row = {"name": name, "folder": str(folder), "pairs": len(pairs), "seconds": vector.card["seconds"], "last": vector.card["curve"][-1]}
    print_json(row) if as_json else screen.print(row)
