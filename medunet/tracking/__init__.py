"""Experiment tracking: MLflow."""

from .anonymous import CaseCodes as CaseCodes
from .bundle_model import BundleModel as BundleModel
from .content import environment as environment
from .mlflow import TrackingHandler as TrackingHandler
from .mlflow import track_cross_validation as track_cross_validation
from .runs import BEST_METRIC as BEST_METRIC
from .runs import TrackedRun as TrackedRun
from .runs import best_run as best_run
from .runs import default_store as default_store
from .runs import differing as differing
from .runs import find_run as find_run
from .runs import folder_of as folder_of
from .runs import list_runs as list_runs
from .runs import sync_runs as sync_runs
from .runs import track_values as track_values
