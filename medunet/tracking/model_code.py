"""The script that an MLflow model of medunet is loaded from ("models from code"): no object is ever pickled."""

from mlflow.models import set_model

from medunet.tracking.bundle_model import BundleModel

set_model(BundleModel())
