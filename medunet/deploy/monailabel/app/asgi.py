"""MONAI Label's web application, guarded, with errors that say what is wrong."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from monailabel.endpoints import infer as infer_endpoint
from monailabel.interfaces.exception import MONAILabelException

from medunet.deploy.monailabel.guard import Guard
from medunet.deploy.monailabel.server import SETTINGS_VARIABLE, TOKEN_VARIABLE
from medunet.errors import MedunetError, find_cause

from .segmentation_objects import use_own_names

UNUSABLE = 422
"""HTTP's "unprocessable content": the request was understood, its image or values cannot be used."""


async def _report(request: Request, error: Exception) -> JSONResponse:
    cause = find_cause(error)
    if cause is not None:
        return JSONResponse({"detail": str(cause), "kind": type(cause).__name__}, status_code=UNUSABLE)
    return JSONResponse({"detail": str(getattr(error, "msg", error))}, status_code=UNUSABLE)


def _infer_beside_the_loop() -> Any:
    """MONAI Label's application, changed so that it answers others while a network computes.

    Its own endpoint infers in the event loop itself; a plain function is run in a thread by FastAPI. The change must
    come before the application takes its routes.
    """
    router = infer_endpoint.router
    router.routes.clear()
    router.add_api_route("/{model}", infer_endpoint.run_inference, methods=["POST"], summary="Segment an image")
    return importlib.import_module("monailabel.app").app


use_own_names()
_monai_label = _infer_beside_the_loop()
for _kind in (MedunetError, MONAILabelException):
    _monai_label.add_exception_handler(_kind, _report)
_settings = json.loads(Path(os.environ[SETTINGS_VARIABLE]).read_text(encoding="utf-8"))
app = Guard(_monai_label, token=os.environ.get(TOKEN_VARIABLE), loopback=_settings["loopback"])
