"""MONAI bundles: rendered from YAML, planned for or fitted to data, trained, measured, verified."""

from medunet.resources import find_bundle as find_bundle
from medunet.resources import resource_dir as resource_dir
from medunet.resources import shipped_bundles as shipped_bundles

from .cross_validation import CrossValidation as CrossValidation
from .cross_validation import FoldOutcome as FoldOutcome
from .cross_validation import FoldTrainer as FoldTrainer
from .cross_validation import resume_folds as resume_folds
from .cross_validation import train_fold as train_fold
from .cross_validation import train_folds as train_folds
from .decisions import show as show
from .demo import run_demo as run_demo
from .measuring import evaluate_bundle as evaluate_bundle
from .measuring import evaluate_folders as evaluate_folders
from .planned import PlannedBundle as PlannedBundle
from .planned import plan_bundle as plan_bundle
from .render import render as render
from .render import render_all as render_all
from .report import WrittenReport as WrittenReport
from .report import report_runs as report_runs
from .resume import resume_run as resume_run
from .specialise import specialise as specialise
from .verify import verify_bundle as verify_bundle
from .workflow import PreparedRun as PreparedRun
from .workflow import TrainingResult as TrainingResult
from .workflow import fit_data as fit_data
from .workflow import prepare_run as prepare_run
from .workflow import run_training as run_training
from .workflow import train_bundle as train_bundle
from .workflow import train_prepared as train_prepared
from .workflow import write_run as write_run
