"""``musetalk-enhance serve``: the HTTP service."""

from __future__ import annotations

import argparse
import os

from .job import add_options, offer_detector, settings_from

HELP = "serve face restoration over HTTP, with a page for the browser"
EXAMPLES = (
    "musetalk-enhance serve --model lite",
    "musetalk-enhance serve --host 0.0.0.0    # with a secret in MUSETALK_ENHANCE_TOKEN",
)
MAIN = ("host", "port", "token", "model", "face_detector", "device")
"""Options that stand first in the help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of `ServeSettings`."""
    from ..serve.settings import ServeSettings

    add_options(parser, ServeSettings, MAIN)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted.

    Raises:
        EnhanceError: the service cannot start.
    """
    from ..errors import MissingDependencyError
    from ..serve.settings import TOKEN_ENV, ServeSettings

    if not hasattr(args, "job_token") and os.environ.get(TOKEN_ENV):
        args.job_token = os.environ[TOKEN_ENV]
    settings = settings_from(args, ServeSettings)
    try:
        from ..serve.server import run as serve
    except ImportError as error:
        package, purpose = error.name or "fastapi", "musetalk-enhance serve"
        raise MissingDependencyError(package, "serve", purpose, str(error)) from error
    offer_detector(settings)
    serve(settings)
    return 0
