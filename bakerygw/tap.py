"""What `twistd bakerygw` runs: options in, the gateway's service out."""

import os
import sys
import time

from OpenSSL import SSL, crypto
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.python import usage

from bakerygw import cli
from bakerygw.config.routes import ConfigError
from bakerygw.config.secrecy import secret_values
from bakerygw.config.settings import Settings, load_settings
from bakerygw.runtime.poller import TurnPoller
from bakerygw.runtime.resolver import install_resolver
from bakerygw.service import build
from bakerygw.telemetry.logs import configure_logging
from bakerygw.telemetry.writer import LogWriter


class Options(usage.Options):
    """Command line of the plugin."""

    synopsis = "[--config FILE] [--demo] [--check]"
    longdesc = "The API gateway of Bakery-IA. Its settings are environment variables; see etc/bakerygw.env.example."
    optParameters = [["config", "c", None, "TOML file with settings; the environment wins"]]  # noqa: RUF012
    optFlags = [  # noqa: RUF012
        ["demo", None, "Start demo services too, on loopback, and print what to try"],
        ["check", None, "Check the configuration, print every error, exit with 0 or 1"],
    ]

    def postOptions(self) -> None:
        """`--check` ends here."""
        if self["check"]:
            given = [
                "check",
                *(["--config", self["config"]] if self["config"] else []),
                *["--demo"] * bool(self["demo"]),
            ]
            raise SystemExit(cli.main(given))


def makeService(options: Options) -> IService:
    """Build the gateway; nothing is opened yet. Ends the process with 1, every problem told, if it can't be built."""

    def read_settings() -> Settings:
        return load_settings(os.environ, options["config"], demo=bool(options["demo"]))

    try:
        settings = read_settings()
    except ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"bakerygw: {problem}\n")
        raise SystemExit(1) from None
    # Twisted times by the wall clock; a clock that is set must neither end deadlines nor stretch them
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    install_resolver(reactor)
    # twistd redirects standard output into the log from here on, so the log takes the descriptor itself
    writer = LogWriter(sys.stdout.fileno(), reactor)
    pretty = settings.structlog_pretty_print or (settings.demo and writer.isatty)
    logs = configure_logging(writer, level=settings.log_level, pretty=pretty, secrets=secret_values(settings))
    try:
        return build(settings, TurnPoller(reactor) if TurnPoller.works() else reactor, logs, read_settings)
    except (ValueError, OSError, crypto.Error, SSL.Error) as error:
        reason = " ".join(str(error).split())
        sys.stderr.write(f"bakerygw: cannot be built: {type(error).__name__}: {reason}\n")
        raise SystemExit(1) from None
