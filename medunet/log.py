"""Log lines of medunet's processes on standard error, and only the errors of other libraries."""

import logging
import os
import sys
import warnings

# Loggers that report internals at every start; they set their own level and handler when they are imported.
CHATTY = (
    *("monai.bundle.workflows", "monai.data.image_reader", "monai.data.nvimgcodec_pydicom_plugin"),
    *("mlflow.pyfunc", "mlflow.store.db.utils"),
)


def set_up(*, level: int = logging.INFO, debug: bool = False) -> None:
    """Configure logging: `level` applies to medunet's lines; `debug` also shows what libraries log and warn about."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("medunet").setLevel(level)
    if debug:
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("ignite.engine").setLevel(logging.CRITICAL)  # it logs each exception that it raises again
    for name in CHATTY:
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
