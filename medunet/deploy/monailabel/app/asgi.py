"""MONAI Label's web application behind the gate, with readable errors."""

import importlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.datastore import dicom
from monailabel.endpoints import activelearning, infer
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.exception import MONAILabelException

from medunet.deploy.monailabel.gate import Gate, limits_of_environment
from medunet.deploy.monailabel.private_log import server_names
from medunet.deploy.monailabel.server import SETTINGS_VARIABLE, TOKEN_VARIABLE
from medunet.errors import MedunetError, find_cause

from .application import make_dicom_seg

UNUSABLE = 422  # HTTP's "unprocessable content": an image or value of a valid request cannot be used

# The role that MONAI Label requires on the routes replaced below; without MONAI_LABEL_AUTH_ENABLE everybody has it.
_as_user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))


async def _report(request: Request, error: Exception) -> JSONResponse:
    if cause := find_cause(error):
        return JSONResponse({"detail": str(cause), "kind": type(cause).__name__}, UNUSABLE)
    if isinstance(error, MONAILabelException):
        return JSONResponse({"detail": str(getattr(error, "msg", error))}, UNUSABLE)
    # the message may be private; the traceback is in the log
    return JSONResponse({"detail": f"unexpected error: {type(error).__name__}"}, 500)


def _sample(strategy: str, params: dict[str, Any] | None = None, user: User = _as_user) -> dict[str, Any]:
    answer: dict[str, Any] = activelearning.sample(strategy, params, user.username)
    return answer


def _import_application() -> Any:
    """Import MONAI Label's application so that it answers other requests while a network runs.

    MONAI Label runs these two endpoints in the event loop; FastAPI runs a plain function in a thread. The application
    includes the routes when it is imported.
    """
    infer.router.routes.clear()
    infer.router.add_api_route("/{model}", infer.run_inference, methods=["POST"], dependencies=[_as_user])
    activelearning.router.routes.clear()
    activelearning.router.add_api_route("/{strategy}", _sample, methods=["POST"])
    application = importlib.import_module("monailabel.app").app
    for kind in (MedunetError, MONAILabelException, Exception):
        application.add_exception_handler(kind, _report)
    return application


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
infer.nifti_to_dicom_seg = dicom.nifti_to_dicom_seg = make_dicom_seg
app = Gate(
    _import_application(),
    token=os.environ.get(TOKEN_VARIABLE),
    loopback=json.loads(Path(os.environ[SETTINGS_VARIABLE]).read_text(encoding="utf-8"))["loopback"],
    hide=server_names().hide,
    **limits_of_environment(),
)
