"""Commands on alignment vectors."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from fader.cli.show import (
    AsJson,
    commands,
    needing,
    print_json,
    screen,
    show,
    table,
    with_strengths,
)
from fader.engine import builtin
from fader.files import write_whole
from fader.vectors import checkpoint
from fader.vectors.store import available, folders, open_vector, vector_folder
from fader.vectors.vector import Vector, compress, sparsify

app = commands("Alignment vectors: make, change, compare, inspect.")

Source = Annotated[str, typer.Argument(help="A vector's name or folder.")]
Base = Annotated[
    str, typer.Option(help="The unaligned model: a checkpoint folder, or the built-in name.")
]
Name = Annotated[str, typer.Option(help="What requests will call the new vector.")]
Out = Annotated[
    str | None,
    typer.Option(help="Folder to write; left out: the user's vectors folder, where requests look."),
]
Rank = Annotated[int | None, typer.Option(help="At most this rank per layer.")]
Energy = Annotated[
    float | None,
    typer.Option(
        help="Per layer the least rank that keeps this share of the squared norm, such as 0.9."
    ),
]


@app.command("list", epilog="Example: `fader vectors list --json`")
def list_vectors(as_json: AsJson = False) -> None:
    """The vectors that can be asked for by name."""
    rows = [{"name": name, "folder": str(folder)} for name, folder in available().items()]
    show(
        "Vectors",
        rows,
        as_json,
        f"No vectors yet; put PEFT LoRA folders into one of {', '.join(map(str, folders()))}",
    )


@app.command(
    epilog="Example: `fader vectors inspect ./my-lora --against medical --picture norms.png`"
)
def inspect(
    name: Source,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Another vector, for the cosine between the two; may be given several times."
        ),
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option(help="Write a heat map of the norms, layers x modules, to this PNG file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A vector's rank and base model, the norm of its difference in every layer and kind of module,
    and cosines to other vectors."""
    vector = open_vector(name)
    cosines = {other: vector.cosine(open_vector(other)) for other in against or []}
    if picture is not None:
        _draw(vector, Path(picture))
    head = {
        "name": vector.name,
        "rank": vector.rank,
        "base_model": vector.card.get("base_model"),
        "base_fingerprint": vector.base,
    }
    head["norm"] = vector.norm()
    norms = vector.norms()
    if as_json:
        print_json(
            {
                **head,
                "norms": norms,
                "layers": _summed(norms, 0),
                "kinds": _summed(norms, 1),
                "cosines": cosines,
            }
        )
        return
    screen.print(head)
    table("Norms", _grid(norms))
    if cosines:
        table(
            "Cosines",
            [{"vector": other, "cosine": f"{cosine:.4f}"} for other, cosine in cosines.items()],
        )


@app.command(
    epilog="Example: `fader vectors extract ./aligned --base ./unaligned --name mine --rank 16`"
)
def extract(
    aligned: Annotated[str, typer.Argument(help="The aligned checkpoint, or a PEFT LoRA folder.")],
    name: Name,
    base: Base = builtin.NAME,
    rank: Rank = None,
    energy: Energy = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The difference between an aligned checkpoint and its base as a vector. With neither --rank
    nor --energy nothing is cut."""
    folder = _free(name, out)
    if checkpoint.is_adapter(aligned):
        vector = checkpoint.adopt(aligned, base, name, rank, energy)
    else:
        vector = checkpoint.extract(aligned, base, name, rank, energy, _track("extract"))
    left_out = vector.card.get("not_carried", {})
    warnings = [
        f"not carried, since it is no linear layer of its own: {tensor} (norm {norm:.4g})"
        for tensor, norm in left_out.items()
    ]
    _write(vector, folder, as_json, warnings, cut=vector.card.get("layers", {}))


@app.command(epilog="Example: `fader vectors merge medical=0.5 ./my-lora=-0.3 --out ./merged`")
def merge(
    parts: Annotated[
        list[str],
        typer.Argument(
            metavar="VECTOR=STRENGTH...", help="Names or folders of vectors, with their strengths."
        ),
    ],
    out: Annotated[str, typer.Option(help="Checkpoint folder to write; must not be there yet.")],
    base: Base = builtin.NAME,
    as_json: AsJson = False,
) -> None:
    """Write the checkpoint base + sum of STRENGTH * VECTOR, for a mixture that a whole deployment
    shares."""
    strengths = with_strengths(parts)
    folder = checkpoint.merge(base, strengths, out, _track("merge"))
    row = {
        "folder": str(folder),
        "base_model": base,
        "vectors": [[vector.name, strength] for vector, strength in strengths.items()],
    }
    print_json(row) if as_json else screen.print(row)


@app.command(
    "compress", epilog="Example: `fader vectors compress medical --name medical-4 --rank 4`"
)
def compress_command(
    source: Source,
    name: Name,
    rank: Rank = None,
    energy: Energy = None,
    layers: Annotated[
        float | None,
        typer.Option(
            help="First keep only the largest layers that hold this share of the squared norm."
        ),
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The nearest vector of lower rank, with the error of every layer."""
    if rank is energy is layers is None:
        raise ValueError("--rank: nothing to do; give --rank, --energy or --layers")
    folder, whole = _free(name, out), open_vector(source)
    vector = whole if layers is None else sparsify(whole, layers)
    small, _ = compress(vector, rank, energy)
    gone = 1 - (vector.norm() / whole.norm()) ** 2 if vector.factors else 0.0
    dropped = len(whole.factors) - len(vector.factors)
    warnings = (
        [
            f"{dropped} layers dropped, which held {gone:.3g} of the squared norm; errors are those"
            " of the others"
        ]
        if dropped
        else []
    )
    _write(small.named(name), folder, as_json, warnings, cut=small.card["layers"])


@app.command(epilog="Example: `fader vectors negate medical --name less-medical`")
def negate(source: Source, name: Name, out: Out = None, as_json: AsJson = False) -> None:
    """The vector turned round: 1 of it is -1 of the other."""
    folder, vector = _free(name, out), open_vector(source)
    _write(
        replace(-vector, name=name, card={**vector.card, "negated_from": vector.name}),
        folder,
        as_json,
    )


@app.command(
    epilog="Example: `fader vectors transfer medical --onto ./finetuned --name medical-finetuned`"
)
def transfer(
    source: Source,
    onto: Annotated[str, typer.Option(help="The other fine-tuning stage: a checkpoint folder.")],
    name: Name,
    base: Annotated[
        str | None,
        typer.Option(
            help="The vector's own model; left out: the one its card names, if it is at hand."
        ),
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The vector for another fine-tuning stage of its base model, and how far that stage has moved
    in each of its layers."""
    folder, vector = _free(name, out), open_vector(source)
    named = str(vector.card.get("base_model") or "")
    if base is None and (named == builtin.NAME or (Path(named) / "config.json").is_file()):
        base = named
    moved = checkpoint.transfer(vector, onto, base, _track("transfer")).named(name)
    warnings = [
        f"{onto} has fingerprint {moved.base}, the vector was made for {vector.base}; measure what"
        " it does there"
    ]
    if base is None:
        warnings.append(
            "the vector's own model is not at hand: vocabulary and distance were not compared; give"
            " --base FOLDER"
        )
    _write(moved, folder, as_json, warnings, moved=moved.card["transferred_from"]["moved"] or {})


def _free(name: str, out: str | None) -> Path:
    """The folder to write. Raises ValueError if it is there already, or the name is none."""
    folder = vector_folder(name, out, "--name")
    if folder.exists():
        raise ValueError(
            f"--out: {folder} is there already; choose another name or folder, or remove it"
        )
    return folder


def _track(title: str) -> checkpoint.Track:
    """A progress bar over the names of tensors, on standard error."""
    console = Console(stderr=True)
    return lambda names: track(names, title, console=console, transient=True)


def _write(
    vector: Vector,
    folder: Path,
    as_json: bool,
    warnings: Sequence[str] = (),
    **by_layer: Mapping[str, Mapping[str, float]],
) -> None:
    """Save the vector; say what is in it, numbers by layer, and, on standard error, what to beware
    of."""
    vector.save(folder)
    head = {
        "name": vector.name,
        "folder": str(folder),
        "rank": vector.rank,
        "layers": len(vector.factors),
        "norm": vector.norm(),
    }
    if cut := by_layer.get("cut"):
        gone = math.hypot(*(row["error"] * row["before"] for row in cut.values()))
        head["error"] = gone / math.hypot(*(row["before"] for row in cut.values()))
    if as_json:
        print_json({**head, "warnings": list(warnings), **by_layer})
        return
    for title, rows in by_layer.items():
        table(
            title,
            [
                {"layer": module, **{key: f"{value:.4g}" for key, value in row.items()}}
                for module, row in rows.items()
            ],
        )
    screen.print(head)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


def _place(module: str) -> tuple[str, str]:
    """The number of a module's block and its kind: ("3", "mlp.up_proj"); no number for the head."""
    match = re.match(r"(?:.*?\.)?(\d+)\.(.+)$", module)
    return (match[1], match[2]) if match else ("", module)


def _summed(norms: Mapping[str, float], by: int) -> dict[str, float]:
    """The norms of all blocks (`by` 0) or kinds (1), in the order in which they come."""
    found: dict[str, float] = {}
    for module, norm in norms.items():
        key = _place(module)[by]
        found[key] = math.hypot(found.get(key, 0.0), norm)
    return found


def _blocks(norms: Mapping[str, float]) -> list[str]:
    """The blocks, in order of their numbers."""
    return sorted(_summed(norms, 0), key=lambda block: int(block) if block else sys.maxsize)


def _grid(norms: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row per block with a column per kind of module, and what they hold together."""
    kinds, blocks, placed = (
        _summed(norms, 1),
        _summed(norms, 0),
        {_place(module): norm for module, norm in norms.items()},
    )
    short = {kind: kind.rpartition(".")[2] for kind in kinds}
    labels = short if len(set(short.values())) == len(kinds) else {kind: kind for kind in kinds}
    rows = []
    for block in _blocks(norms):
        row = {
            labels[kind]: f"{placed[block, kind]:.3f}" for kind in kinds if (block, kind) in placed
        }
        rows.append({"layer": block, **row, "all": f"{blocks[block]:.3f}"})
    total = {labels[kind]: f"{norm:.3f}" for kind, norm in kinds.items()}
    return [*rows, {"layer": "all", **total, "all": f"{math.hypot(*kinds.values()):.3f}"}]


def _draw(vector: Vector, file: Path) -> None:
    """A heat map of the norms, blocks x kinds of modules, as a PNG; written beside its place and
    renamed."""
    if file.suffix != ".png":
        raise ValueError(f"--picture: {file} must end with .png")
    with needing("--picture", "eval"):
        from matplotlib.figure import Figure

    norms = vector.norms()
    blocks, kinds, placed = (
        _blocks(norms),
        list(_summed(norms, 1)),
        {_place(module): norm for module, norm in norms.items()},
    )
    figure = Figure(figsize=(2 + 0.7 * len(kinds), 2 + 0.22 * len(blocks)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        [[placed.get((block, kind), math.nan) for kind in kinds] for block in blocks], aspect="auto"
    )
    axes.set_xticks(range(len(kinds)), kinds, rotation=45, ha="right")
    axes.set_yticks(range(len(blocks)), [block or "head" for block in blocks])
    axes.set_title(f"{vector.name}: norm of the difference")
    figure.colorbar(image)
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    write_whole(file, drawn.getvalue())
