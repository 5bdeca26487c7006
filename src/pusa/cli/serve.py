"""`pusa serve` and `pusa ui`: the server, and the server with its page opened in a browser."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from pusa.cli.shared.arguments import lora
from pusa.cli.shared.memory_report import profile_for
from pusa.cli.shared.options import File, Many, Model, Switch, Verbosity, Whole
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError, needing
from pusa.models import kernels

if TYPE_CHECKING:
    from pusa.serving.server import ServerOptions

SERVER = Group("Server", sort_key=1)


@Parameter(name="*", group=SERVER)
@dataclass(frozen=True, kw_only=True)
class Serving:
    """Where the server listens, and what it keeps."""

    host: str = "127.0.0.1"
    """The address to listen on. Another one than 127.0.0.1 needs --api-keys."""
    port: Annotated[int, Whole] = 8000
    """The port to listen on; 0 is a free one."""
    data: Annotated[Path, File, Parameter(metavar="FOLDER")] = Path("outputs/serve")
    """The folder of the clips, and of the queue unless --store is given."""
    workers: Annotated[int, Whole] = 1
    """Processes that make clips: one for each GPU. 0 only answers, for other servers of the same store."""
    store: Annotated[str | None, Parameter(metavar="postgresql://...")] = None
    """A PostgreSQL database, which servers on several machines share. They share --data, too, or --results."""
    results: Annotated[str | None, Parameter(metavar="URL")] = None
    """An address of fsspec for the files of clips, such as s3://bucket/pusa, in place of a shared folder."""
    api_keys: Annotated[Path | None, File, Parameter(metavar="FILE")] = None
    """A file with a name and a key on each line. It is read again when it changes."""
    max_queued: Annotated[int, Whole] = 100
    """Clips that may wait; further ones are refused with status 429."""
    max_clip: float = 16.0
    """How many times as large as the model's own clip a clip may be, in pixels times frames."""
    keep_hours: Annotated[float | None, Parameter(show_default=lambda _: "for ever")] = None
    """How long finished clips are kept."""
    quota_gb: Annotated[float | None, Parameter(show_default=lambda _: "no limit")] = None
    """Gigabytes of finished clips; the oldest are removed, but none that is being read."""
    max_upload_mb: Annotated[int, Whole] = 256
    """Megabytes of an uploaded picture or clip."""
    offer_lora: Annotated[tuple[str, ...], Many, Parameter(metavar="NAME=PATH")] = ()
    """A LoRA that requests may name. Repeatable."""
    allow_addresses: Annotated[bool, Switch] = False
    """Fetch pictures and clips from https addresses that requests name. Private addresses are refused."""


def serve(model: Model = Model(), serving: Serving = Serving(), verbosity: Verbosity = Verbosity()) -> Report:
    """Answer requests for clips over HTTP, with a queue that survives restarts.

    The addresses are those of OpenAI's video service (/v1/videos), with more fields. A clip is stored before the client
    is answered, and is made again if a process dies. Ctrl-C stops the server; what waits goes on with the next start.
    """
    return _run(model, serving, verbosity, page=False)


def ui(model: Model = Model(), serving: Serving = Serving(), verbosity: Verbosity = Verbosity()) -> Report:
    """Open the page on which clips are made, with the server behind it.

    It is the server of pusa serve, and has the same options.
    """
    return _run(model, serving, verbosity, page=True)


def _run(model: Model, serving: Serving, verbosity: Verbosity, *, page: bool) -> Report:
    terminal = Terminal(verbosity.verbose)
    with needing("serve"):
        import dbos  # noqa: F401  # missing libraries are told before anything is loaded
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    options = _options(model, serving)
    options.check()
    from pusa.serving.running import run

    def ready(address: str) -> None:
        terminal.note(f"{model.source} at {address} · the page: {address}/ · Ctrl-C stops")
        if page:
            webbrowser.open(address)

    run(options, ready)
    return Report({"stopped": True})


def _options(model: Model, serving: Serving) -> ServerOptions:
    from pusa.models.loading.presets import named
    from pusa.serving.inspection import UploadLimits
    from pusa.serving.served_model import ServedModel
    from pusa.serving.server import ServerOptions

    if model.preset is not None:
        named(model.preset)
        raise InputError(f"--preset {model.preset} sets options of clips, which requests say: give --model and --lora.")
    for name, value in (("--keep-hours", serving.keep_hours), ("--quota-gb", serving.quota_gb)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name} {value:g}: give a number above 0.")
    kernels.check(model.attention)
    served = ServedModel(
        name=Path(model.source).name,
        source=model.source,
        beside=model.separate_parts(),
        loras=model.loras(),
        offered=dict(_offered(text) for text in serving.offer_lora),
        dtype=model.dtype,
        memory=profile_for(model, None, None) if serving.workers else None,
        attention=model.attention,
        compiled=model.compile,
    )
    return ServerOptions(
        model=served,
        files=serving.data,
        workers=serving.workers,
        store=serving.store,
        results=serving.results,
        keys=serving.api_keys,
        host=serving.host,
        port=serving.port,
        most_waiting=serving.max_queued,
        largest=serving.max_clip,
        expires=None if serving.keep_hours is None else serving.keep_hours * 3600,
        quota=None if serving.quota_gb is None else round(serving.quota_gb * 1e9),
        uploads=UploadLimits(bytes=serving.max_upload_mb * 2**20),
        addresses=serving.allow_addresses,
    )


def _offered(text: str) -> tuple[str, Path]:
    from pusa.models.lora import header

    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise InputError(f"--offer-lora {text!r}: give NAME=PATH, such as paint=paint.safetensors.")
    return name, header.file_of(lora(path, 1.0, "--offer-lora")[0])
