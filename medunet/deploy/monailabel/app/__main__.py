"""Process of the label server: `python -m medunet.deploy.monailabel.app`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import uvicorn
from monailabel.config import settings

from medunet.deploy.monailabel.served import trusted_bundles
from medunet.deploy.monailabel.server import SETTINGS_VARIABLE, TOKEN_VARIABLE, is_loopback
from medunet.errors import MedunetError


def main() -> None:
    """Configure MONAI Label and the processes that it starts, then serve."""
    parser = argparse.ArgumentParser()
    for name in ("--app", "--studies", "--host"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", required=True, type=int)
    options = parser.parse_args()
    if not is_loopback(options.host) and not os.environ.get(TOKEN_VARIABLE):
        sys.exit(f"a server on {options.host} needs a token in {TOKEN_VARIABLE}")
    try:
        trusted_bundles(Path(os.environ[SETTINGS_VARIABLE]))  # before any other code reads a bundle
    except MedunetError as error:
        sys.exit(f"error {error}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    chosen = {
        "MONAI_LABEL_APP_DIR": options.app,
        "MONAI_LABEL_STUDIES": options.studies,
        "MONAI_LABEL_SERVER_PORT": options.port,
    }
    for key, value in chosen.items():
        setattr(settings, key, value)
        os.environ[key] = str(value)  # for training and scoring, which run in their own processes
    # lines of the access log would have names of patients' series
    application = "medunet.deploy.monailabel.app.asgi:app"
    uvicorn.run(application, host=options.host, port=options.port, log_level="info", access_log=False)


if __name__ == "__main__":
    main()
