"""`mofang doctor`: what this machine has, what is missing, and what to type."""

import typer

from mofang.strings import say


def doctor(as_json: bool = typer.Option(False, "--json", help=say("main.option_json"))) -> None:
    import json
    from dataclasses import asdict

    from mofang import settings as _settings
    from mofang.launch.doctor import examine
    from mofang.settings import PREFIX, Settings

    settings = _settings.load()
    findings = examine(settings)
    values = {PREFIX + name.upper(): str(getattr(settings, name)) for name in Settings.model_fields}
    if as_json:
        report = {"findings": [asdict(finding) for finding in findings], "settings": values}
        typer.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _print(findings, values)
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)


def _print(findings: list, values: dict[str, str]) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table

    marks = {"ok": "[green]✓[/]", "note": "[yellow]•[/]", "missing": "[red]✗[/]"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        table.add_row(marks[finding.status], finding.name, finding.found)
        if finding.cure:
            table.add_row("", "", f"[dim]→ {finding.cure}[/]")
    settings = Table(box=None, show_header=False, pad_edge=False, title=say("main.settings"), title_justify="left")
    for name, value in values.items():
        settings.add_row(f"[dim]{name}[/]", value)
    console = Console()
    console.print(table)
    console.print()
    console.print(settings)
