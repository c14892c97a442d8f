"""The commands that bring Prometheus and Grafana to a server."""

from pathlib import Path

import click

from lifelist.deploy import scraping
from lifelist.deploy.server import Stopped, stopped_by_signals
from lifelist.deploy.sources import Resolved
from lifelist.deploy.terminal import json_option, note, result
from lifelist.exporter.errors import Failed

every_option = click.option(
    "--every", "every_s", type=click.FloatRange(0.1, 60), default=15, show_default=True, help="Seconds between scrapes."
)
runbook_option = click.option(
    "--runbook",
    default=scraping.RUNBOOK,
    help="Where alerts say that the runbook is: the URL of docs/monitoring/runbook.md.",
)
folder_argument = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))


@click.group()
def monitoring() -> None:
    """Watch a server with Prometheus and Grafana."""


@monitoring.command()
@click.option("--prometheus-port", type=click.IntRange(1, 65535), default=9090, show_default=True)
@every_option
@runbook_option
@click.pass_obj
def up(resolved: Resolved, prometheus_port: int, every_s: float, runbook: str) -> int:
    """Run Prometheus with Lifelist's rules beside a running server, until ctrl-C.

    What it collected stays in the folder prometheus of --home.
    """
    settings = resolved.settings
    with stopped_by_signals():
        try:
            with scraping.running(settings, prometheus_port, every_s, runbook) as (url, process):
                note(f"waiting for the first scrape of {settings.url}")
                scraped = scraping.is_scraped(url, every_s + 10)
                click.echo(f"Prometheus is ready at {url}")
                click.echo(
                    f"  scrapes    {settings.url}/metrics {'' if scraped else '(which does not answer yet)'}".rstrip()
                )
                click.echo(f"  alerts     {url}/alerts")
                click.echo(f"  try        {url}/graph?g0.expr=lifelist_accuracy_ratio&g0.tab=0")
                click.echo("  ctrl-C ends it.")
                raise Failed(f"Prometheus ended by itself, with status {process.wait()}")
        except Stopped:
            return 0


@monitoring.command()
@folder_argument
@json_option
def boards(folder: Path, as_json: bool) -> None:
    """Write the Grafana boards to FOLDER: service, quality, rollout, trainer."""
    made = [str(path) for path in scraping.write_boards(folder)]
    result(
        {"boards": made},
        "\n".join([*made, "import them in Grafana (Dashboards, New, Import), or provision the folder"]),
        as_json,
    )


@monitoring.command()
@folder_argument
@every_option
@runbook_option
@json_option
@click.pass_obj
def compose(resolved: Resolved, folder: Path, every_s: float, runbook: str, as_json: bool) -> None:
    """Write to FOLDER what `docker compose up` needs: Prometheus, Grafana, rules and boards."""
    made = [str(path) for path in scraping.write_compose(folder, resolved.settings, every_s, runbook)]
    text = f"docker compose --project-directory {folder} up, then Grafana is at http://localhost:3000"
    result({"files": made}, "\n".join([*made, text]), as_json)
