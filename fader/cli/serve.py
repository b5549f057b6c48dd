"""Commands that serve: the server, and the API keys of its clients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fader.backends import Backend, EngineName
from fader.backends.local import Local, loader
from fader.backends.vllm import VLLM
from fader.cli.show import (
    AsJson,
    Engine,
    Model,
    RunBy,
    SameAs,
    commands,
    needing,
    refuse_kin,
    screen,
    show,
    size_of,
    with_strengths,
)
from fader.engine import builtin
from fader.given import is_model
from fader.profiles import load_alignment
from fader.request import Alignment, Request
from fader.schema import Faults, within
from fader.vectors.vector import Vector

if TYPE_CHECKING:
    from fader.server.limits import Limits

app = commands("API keys of the server's clients.")
KeyFile = Annotated[
    Path | None, typer.Option("--keys", help="File of API keys; left out: the user's own.")
]
Name = Annotated[str, typer.Argument(help="Whose key it is.")]


def serve(
    model: Model = builtin.NAME,
    engine: RunBy = Engine.TORCH,
    same_as: SameAs = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VECTOR=STRENGTH",
            help=(
                "With --engine vllm: merge this vector, a name or a folder, into the weights at the"
                " start; those of requests come on top. Repeatable."
            ),
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. One that others can reach needs API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8000,
    align: Annotated[
        str | None,
        typer.Option(help="The alignment of requests that say none: JSON, a file or a profile."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; left out: as it is called.")
    ] = None,
    keys: KeyFile = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which clients may call it. Repeatable.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="A web page elsewhere that may use it, as https://x.org. Repeatable."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="How long a request may take, waiting included.")
    ] = 600.0,
    kv_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help=(
                "Memory for keys and values, remembered prompts among them, such as 2GB; left out:"
                " a quarter of what is free."
            ),
        ),
    ] = None,
    waiting: Annotated[
        int, typer.Option(min=1, help="Requests that may wait for memory; others get 429.")
    ] = 256,
    per_key: Annotated[
        int, typer.Option(min=1, help="Requests that one key may have under way.")
    ] = 64,
    rows: Annotated[int, typer.Option(min=1, help="Rows that one request may take.")] = 256,
    share_prompts: Annotated[
        bool,
        typer.Option(
            help=(
                "Read once what requests begin with in common. A client can tell by the time that"
                " another has sent the same beginning; turn it off where clients must not."
            )
        ),
    ] = True,
    replicas: Annotated[
        str | None,
        typer.Option(
            metavar="N or MIN-MAX",
            help=(
                "Serve by so many processes on Ray: the cluster that RAY_ADDRESS names, else this"
                " machine. A range: by how much there is to do."
            ),
        ),
    ] = None,
    replica_cpus: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs of a replica; left out: its share of the cluster."),
    ] = None,
    replica_gpus: Annotated[
        int | None,
        typer.Option(min=0, help="GPUs of a replica; left out: one where there are any."),
    ] = None,
) -> None:
    """Serve a model over OpenAI's API, every request under its own alignment."""
    with needing("serving", "server"):
        from fader.server.keys import Keys, key_file
        from fader.server.limits import Limits
        from fader.server.run import check_address, run
    known = Keys(keys or key_file())
    check_address(host, known)
    default = load_alignment(align if align is not None else {})
    limits = Limits(seconds=seconds, waiting=waiting, per_key=per_key, rows=rows)
    called = name or (Path(model).stem if is_model(Path(model)) else model)
    if merge and engine is not Engine.VLLM:
        raise ValueError(
            f"--merge: is for --engine vllm (got {engine.value}); name the vectors in --align, or"
            " write the checkpoint to serve with `fader vectors merge`"
        )
    refuse_kin(engine.value, same_as)
    make = partial(
        _backend,
        model,
        called,
        engine.value,
        same_as,
        with_strengths(merge or ()),
        size_of("--kv-bytes", kv_bytes),
        share_prompts=share_prompts,
        max_waiting=limits.waiting,
    )
    for option, count in (("--replica-cpus", replica_cpus), ("--replica-gpus", replica_gpus)):
        if count is not None and replicas is None:
            raise ValueError(f"{option}: is for --replicas; give that too, or leave it out")
    backend: Backend
    if replicas is None:
        backend = make()
    else:
        least, most = _bounds(replicas)
        with needing("--replicas", "ray"):
            from fader.backends.ray import Replicas
        given = {"num_cpus": replica_cpus, "num_gpus": replica_gpus}
        takes = {what: count for what, count in given.items() if count is not None}
        backend = Replicas(make, least, most, limits.waiting, takes)
    try:
        if align is not None:
            with within("--align"):
                _check(backend, default, limits)
        screen.print(f"{called} at http://{host}:{port}/v1; its page: http://{host}:{port}/")
        run(backend, host, port, known, default, limits, allow_host or (), allow_origin or ())
    finally:
        backend.close()


def _check(backend: Backend, default: Alignment, limits: Limits) -> None:
    """Raises `Invalid` for an alignment under which no request could be answered."""
    from fader.server.limits import check_size
    from fader.server.serving import shortest
    from fader.server.wire import usual_temperature

    asked = Request.of("hello", alignment=default, temperature=usual_temperature(default))
    asked = shortest(asked, limits.max_tokens)
    Faults(found=backend.check(asked)).raise_any()
    check_size(limits, [asked], [backend.needs(asked)])


def _backend(
    model: str,
    called: str,
    by: EngineName,
    same_as: str | None,
    merged: Mapping[Vector, float],
    kv_bytes: int | None,
    **settings: Any,
) -> Backend:
    """The backend of one process."""
    if by == "vllm":
        return VLLM(model, name=called, merge=merged, kv_bytes=kv_bytes, **settings)
    kin = {} if same_as is None else {"same_as": same_as}
    backbone = loader(by)(model, kv_bytes=kv_bytes, **kin)
    backbone.name = called
    return Local(backbone, **settings)


def _bounds(replicas: str) -> tuple[int, int]:
    """The fewest and the most replicas, of `4` or `1-4`."""
    found = re.fullmatch(r"([1-9]\d{0,3})(?:-([1-9]\d{0,3}))?", replicas)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if least > most:
        raise ValueError(f"--replicas: must be a number, or a range such as 1-4 (got {replicas!r})")
    return least, most


@app.command("add", epilog="Example: `fader keys add clinic-ward-3`")
def add(
    name: Name,
    admin: Annotated[bool, typer.Option("--admin", help="It may also write profiles.")] = False,
    keys: KeyFile = None,
) -> None:
    """Make a key. It is shown this once: only its hash is kept."""
    with needing("serving", "server"):
        from fader.server.keys import Keys, key_file
    typer.echo(Keys(keys or key_file()).add(name, admin))


@app.command("list", epilog="Example: `fader keys list --json`")
def list_keys(keys: KeyFile = None, as_json: AsJson = False) -> None:
    """Whose keys there are."""
    with needing("serving", "server"):
        from fader.server.keys import Keys, key_file
    rows = [{"name": one.name, "admin": one.admin} for one in Keys(keys or key_file()).known()]
    show("Keys", rows, as_json, empty="no keys: none is needed on this machine")


@app.command("revoke", epilog="Example: `fader keys revoke clinic-ward-3`")
def revoke(name: Name, keys: KeyFile = None) -> None:
    """Let a key work no more, at once, also in servers that run."""
    with needing("serving", "server"):
        from fader.server.keys import Keys, key_file
    Keys(keys or key_file()).revoke(name)
