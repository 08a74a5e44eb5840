"""MONAI Label's web application, guarded, with errors that say what is wrong."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.endpoints import activelearning, infer
from monailabel.endpoints.user.auth import RBAC, User
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


_as_user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
"""The role that MONAI Label asks for on the routes replaced below; without MONAI_LABEL_AUTH_ENABLE anyone has it."""


def _sample(strategy: str, params: dict[str, Any] | None = None, user: User = _as_user) -> dict[str, Any]:
    answer: dict[str, Any] = activelearning.sample(strategy, params, user.username)
    return answer


def _import_application() -> Any:
    """Import MONAI Label's application so that it answers other requests while a network runs.

    MONAI Label runs these two endpoints in the event loop; FastAPI runs a plain function in a thread. The routes must
    be replaced before the application includes them.
    """
    infer.router.routes.clear()
    infer.router.add_api_route("/{model}", infer.run_inference, methods=["POST"], dependencies=[_as_user])
    activelearning.router.routes.clear()
    activelearning.router.add_api_route("/{strategy}", _sample, methods=["POST"])
    return importlib.import_module("monailabel.app").app


use_own_names()
_monai_label = _import_application()
for _kind in (MedunetError, MONAILabelException):
    _monai_label.add_exception_handler(_kind, _report)
_monai_label.add_exception_handler(Exception, _report_unforeseen)
_settings = json.loads(Path(os.environ[SETTINGS_VARIABLE]).read_text(encoding="utf-8"))
_limited = Limits.from_environment(HiddenImages(_monai_label, HIDDEN))
app = Guard(_limited, token=os.environ.get(TOKEN_VARIABLE), loopback=_settings["loopback"])
