"""MONAI Label's web application, guarded, with errors that say what is wrong."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from monailabel.endpoints import activelearning, infer
from monailabel.interfaces.exception import MONAILabelException

from medunet.deploy.monailabel.guard import Guard
from medunet.deploy.monailabel.limits import Limits
from medunet.deploy.monailabel.private_log import HiddenImages
from medunet.deploy.monailabel.server import SETTINGS_VARIABLE, TOKEN_VARIABLE
from medunet.errors import MedunetError, find_cause

from .hidden import HIDDEN
from .segmentation_objects import use_own_names

UNUSABLE = 422
"""HTTP's "unprocessable content": the request was understood, its image or values cannot be used."""


async def _report_unforeseen(request: Request, error: Exception) -> JSONResponse:
    """In words, but without what may be private; the traceback is in the log."""
    return JSONResponse({"detail": f"unexpected error: {type(error).__name__}"}, status_code=500)


async def _report(request: Request, error: Exception) -> JSONResponse:
    cause = find_cause(error)
    if cause is not None:
        return JSONResponse({"detail": str(cause), "kind": type(cause).__name__}, status_code=UNUSABLE)
    return JSONResponse({"detail": str(getattr(error, "msg", error))}, status_code=UNUSABLE)


def _compute_beside_the_loop() -> Any:
    """MONAI Label's application, changed so that it answers others while a network computes.

    Its own endpoints compute in the event loop itself; a plain function is run in a thread by FastAPI. The change must
    come before the application takes their routes.
    """
    for router, path, function in (
        (infer.router, "/{model}", infer.run_inference),
        (activelearning.router, "/{strategy}", activelearning.sample),
    ):
        router.routes.clear()
        router.add_api_route(path, function, methods=["POST"])
    return importlib.import_module("monailabel.app").app


use_own_names()
_monai_label = _compute_beside_the_loop()
for _kind in (MedunetError, MONAILabelException):
    _monai_label.add_exception_handler(_kind, _report)
_monai_label.add_exception_handler(Exception, _report_unforeseen)
_settings = json.loads(Path(os.environ[SETTINGS_VARIABLE]).read_text(encoding="utf-8"))
_limited = Limits.from_environment(HiddenImages(_monai_label, HIDDEN))
app = Guard(_limited, token=os.environ.get(TOKEN_VARIABLE), loopback=_settings["loopback"])
