"""`lifelist`: the command line. torch and ray are imported in the commands that need them, so that help is quick."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version

import click

from lifelist.deploy import (
    cli_bench,
    cli_classes,
    cli_increments,
    cli_keys,
    cli_local,
    cli_monitoring,
    cli_quality,
    cli_queries,
    cli_top,
    cli_versions,
    events,
)
from lifelist.deploy.settings import Settings
from lifelist.deploy.sources import Resolved, resolve
from lifelist.deploy.terminal import note
from lifelist.exporter.errors import BadInput, LifelistError, Missing

EPILOG = """Settings are flags too, anywhere on the line: --serving.port 9000, --training.epochs=30; --home and --port
are short ones. --config FILE reads a settings file instead of ./lifelist.toml. `lifelist settings` lists all."""

INTERRUPTED = 128 + signal.SIGINT


class InOrder(click.Group):
    """Help lists the commands in the order in which one comes to need them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(self.commands)


@click.group(
    cls=InOrder, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(installed_version("lifelist"), prog_name="lifelist")
@click.option("-v", "--verbose", is_flag=True, help="Log events to standard error, one JSON line each.")
def root(verbose: bool) -> None:
    """Serve an image classifier that learns new classes while it serves."""
    events.to_stderr(logging.INFO if verbose else logging.ERROR)  # warnings that matter come as events too


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted. Never a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Threads of torch that wait for one another by spinning come to a crawl as soon as they share a core with anything.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        resolved = _resolved(arguments)
        with root.make_context("lifelist", list(resolved.rest), obj=resolved) as context:
            code = root.invoke(context)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:  # after --help and --version
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        note(error.format_message())
        return 2
    except click.ClickException as error:
        command = getattr(error, "ctx", None)
        hint = f" See `{command.command_path} --help`." if command is not None else ""
        note(f"lifelist: {' '.join(error.format_message().split())}{hint}")
        return 2
    except LifelistError as error:
        note(f"lifelist: {error}")
        return 2 if isinstance(error, BadInput | Missing) else 1
    except (KeyboardInterrupt, click.Abort):
        note("lifelist: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader has left, as `head` does; nothing more can be said on that pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        note(f"lifelist: {error.filename or 'the operating system'}: {error.strerror or error}")
        return 1
    except Exception as error:  # the outermost frame: a user gets a sentence, a developer -v
        logging.getLogger("lifelist").info("command.crashed", exc_info=True)
        note(f"lifelist: internal error, please report it (-v shows where): {type(error).__name__}: {error}")
        return 1


def _resolved(arguments: Sequence[str]) -> Resolved:
    """The settings, and what is left of the command line. Help is shown even where a setting is wrong."""
    if {"--help", "-h", "--version"} & set(arguments):
        try:
            return resolve(arguments)
        except BadInput:
            return Resolved(Settings(), {}, tuple(arguments))
    return resolve(arguments)


for _command in (
    cli_local.base,
    cli_local.serve,
    cli_queries.classify,
    cli_classes.classes,
    cli_queries.examples,
    cli_increments.increment,
    cli_versions.versions,
    cli_versions.rollback,
    cli_queries.feedback,
    cli_quality.quality,
    cli_monitoring.monitoring,
    cli_top.top,
    cli_quality.triggers,
    cli_quality.webhooks,
    cli_keys.keys,
    cli_local.train,
    cli_local.demo,
    cli_bench.bench,
    cli_local.settings,
):
    root.add_command(_command)

if __name__ == "__main__":
    sys.exit(main())
