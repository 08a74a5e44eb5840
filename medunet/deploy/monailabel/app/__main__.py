"""`python -m medunet.deploy.monailabel.app`: the server's process."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import uvicorn
from monailabel.config import settings

from medunet.deploy.monailabel.guard import is_loopback
from medunet.deploy.monailabel.served import judge_served
from medunet.deploy.monailabel.server import SETTINGS_VARIABLE, TOKEN_VARIABLE
from medunet.errors import MedunetError

logger = logging.getLogger(__name__)


def main() -> None:
    """Tell MONAI Label and the processes that it starts what to serve, then serve."""
    parser = argparse.ArgumentParser()
    for name in ("--app", "--studies", "--host"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", required=True, type=int)
    options = parser.parse_args()
    if not is_loopback(options.host) and not os.environ.get(TOKEN_VARIABLE):
        sys.exit(f"a server on {options.host} needs a token in {TOKEN_VARIABLE}")
    try:
        judge_served(Path(os.environ[SETTINGS_VARIABLE]))  # before anything of a bundle is read by anybody else
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
        os.environ[key] = str(value)  # for training and scoring, which run in processes of their own
    uvicorn.run(
        "medunet.deploy.monailabel.app.asgi:app",
        host=options.host,
        port=options.port,
        log_level="info",
        access_log=False,  # its lines would hold names of patients' series
    )


if __name__ == "__main__":
    main()
