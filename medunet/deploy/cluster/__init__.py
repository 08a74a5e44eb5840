"""Several processes and machines: training with torch.distributed; cohorts, folds and searches on Ray."""

from .cohort import CohortResult as CohortResult
from .cohort import predict_cohort as predict_cohort
from .cohort import read_cohort as read_cohort
from .dicomweb import DicomWebStore as DicomWebStore
from .folds import folds_on_ray as folds_on_ray
from .launch import train_processes as train_processes
from .ledger import LEDGER_NAME as LEDGER_NAME
from .ledger import Outcome as Outcome
from .tune import parse_ranges as parse_ranges
from .tune import tune_bundle as tune_bundle
