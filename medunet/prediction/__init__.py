"""From a trained bundle and images to label maps, and to numbers about them."""

from .evaluation import Pair as Pair
from .evaluation import evaluate_pairs as evaluate_pairs
from .evaluation import pair_files as pair_files
from .evaluation import prediction_path as prediction_path
from .predictor import Prediction as Prediction
from .predictor import Predictor as Predictor
from .timing import STAGES as STAGES
from .timing import StageSeconds as StageSeconds
