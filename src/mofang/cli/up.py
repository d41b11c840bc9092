"""`mofang up` (gateway and workbench) and `mofang serve` (the gateway alone)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import typer

from mofang.strings import say

if TYPE_CHECKING:
    from mofang.launch.local import Parts, Running
    from mofang.settings import Settings

HOST = typer.Option(None, help=say("main.option_host"), metavar="ADDRESS")
PORT = typer.Option(None, help=say("main.option_port"), min=0, max=65535)
UI_PORT = typer.Option(None, help=say("main.option_ui_port"), min=0, max=65535)
BROWSER = typer.Option(False, "--open", help=say("main.option_open"))


def up(
    host: str | None = HOST, port: int | None = PORT, ui_port: int | None = UI_PORT, browser: bool = BROWSER
) -> None:
    from mofang import settings as _settings

    _run(_settings.load(host=host, port=port, ui_port=ui_port), with_workbench=True, browser=browser)


LAUNCHER = typer.Option("local", "--launcher", help=say("main.option_launcher"), metavar="local|ray")
CLUSTER = typer.Option("", help=say("main.option_cluster"), metavar="HOST:PORT")
REPLICAS = typer.Option(1, help=say("main.option_replicas"), min=1)
MAX_REPLICAS = typer.Option(0, help=say("main.option_max_replicas"), min=0)
CALM = typer.Option(0.0, "--calm", help=say("main.option_calm"), min=0, metavar="SECONDS")
CPUS = typer.Option(0, help=say("main.option_cpus"), min=0)


def serve(
    host: str | None = HOST,
    port: int | None = PORT,
    launcher: str = LAUNCHER,
    cluster: str = CLUSTER,
    replicas: int = REPLICAS,
    max_replicas: int = MAX_REPLICAS,
    calm: float = CALM,
    cpus: int = CPUS,
) -> None:
    from mofang import settings as _settings
    from mofang.errors import Invalid
    from mofang.launch import SERVING

    options = {
        "cluster": cluster, "replicas": replicas, "max_replicas": max_replicas, "calm": calm, "cpus": cpus,
    }  # fmt: skip
    settings = _settings.load(host=host, port=port)
    parts = SERVING.get(launcher)(**options)
    if 0 < max_replicas < replicas:
        raise Invalid("launch.replicas_range", param="--max-replicas", replicas=replicas, max_replicas=max_replicas)
    _run(settings, with_workbench=False, parts=parts)


def _run(settings: "Settings", *, with_workbench: bool, browser: bool = False, parts: "Parts | None" = None) -> None:
    """Start, say where, bring what is missing, and wait for Ctrl-C. Everything started here ends here."""
    from mofang import __version__
    from mofang.launch import local

    with _stop_signal() as stopped, ExitStack() as stack:
        typer.echo(say("launch.starting", version=__version__, home=settings.home))
        local.check_exposure(settings)
        if settings.log_contents:
            typer.echo(say("launch.contents_logged", path=settings.home / "logs" / "requests.jsonl"), err=True)
        running = stack.enter_context(local.gateway(settings, parts=parts or local.own))
        stack.callback(typer.echo, say("launch.stopped"))
        if with_workbench:
            workbench = stack.enter_context(local.workbench(running))
            typer.echo(say("launch.ready", workbench=workbench, gateway=running.url))
            if browser:
                typer.launch(workbench)
        else:
            typer.echo(say("launch.ready_gateway", gateway=running.url))
        threading.Thread(target=_first_use, args=(running,), name="first-use", daemon=True).start()
        stopped.wait()
        typer.echo(say("launch.stopping", seconds=f"{settings.shutdown_grace_s:g}"))


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event set by Ctrl-C or SIGTERM: the first asks us to end in order, the second ends at once."""
    stopped = threading.Event()

    def stop(number: int, _: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_use(running: "Running") -> None:
    from mofang.errors import MofangError
    from mofang.launch import first_use

    with running.client() as client, _JobBar() as bar:
        try:
            first_use.prepare(client, report=bar.line, show=bar.event)
        except MofangError as error:
            bar.line(str(error))


class _JobBar:
    """One progress bar for whatever job runs; plain lines stay above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", visible=False, total=None)

    def __enter__(self) -> "_JobBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def event(self, event: dict[str, Any]) -> None:
        visible = event["type"] == "progress"
        self._bar.update(
            self._task,
            visible=visible,
            description=str(event.get("detail") or event.get("stage") or ""),
            completed=event.get("done") if visible else 0,
            total=event.get("total") or None,
        )
