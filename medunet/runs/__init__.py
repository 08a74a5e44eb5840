"""Runs: train, cross-validate, evaluate, report and join bundles."""

from .evaluate import compare_annotators as compare_annotators
from .evaluate import evaluate_bundle as evaluate_bundle
from .evaluate import evaluate_folders as evaluate_folders
from .folds import CrossValidation as CrossValidation
from .folds import FoldOutcome as FoldOutcome
from .folds import train_fold as train_fold
from .folds import train_folds as train_folds
from .preview import TrainingPreview as TrainingPreview
from .preview import preview_training as preview_training
from .report import report_runs as report_runs
from .train import PreparedRun as PreparedRun
from .train import TrainingResult as TrainingResult
from .train import fit_bundle as fit_bundle
from .train import prepare_run as prepare_run
from .train import train_bundle as train_bundle
from .train import train_run as train_run
from .train import write_run as write_run
