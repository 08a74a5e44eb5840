"""Prediction of label maps with a trained bundle, and their scores."""

from .evaluation import Pair as Pair
from .evaluation import evaluate_pairs as evaluate_pairs
from .evaluation import pair_files as pair_files
from .evaluation import read_pair as read_pair
from .evaluation import reason as reason
from .manifest import CaseFile as CaseFile
from .manifest import Manifest as Manifest
from .options import PredictOptions as PredictOptions
from .postprocessing import choose_region_rules as choose_region_rules
from .postprocessing import choose_rules as choose_rules
from .predictor import Predictor as Predictor
from .preview import preview_predictions as preview_predictions
from .result import Prediction as Prediction
from .result import Status as Status
from .review import Review as Review
from .rules import ClassRule as ClassRule
from .rules import as_step as as_step
from .source import NamedSource as NamedSource
from .timing import STAGES as STAGES
from .timing import StageSeconds as StageSeconds
