"""The training loop: MONAI's engines and what they lack."""

from .averaging import WeightAverage as WeightAverage
from .checkpoint import BEST_NAME as BEST_NAME
from .checkpoint import LAST_NAME as LAST_NAME
from .checkpoint import PREVIOUS_NAME as PREVIOUS_NAME
from .checkpoint import CheckpointHandler as CheckpointHandler
from .checkpoint import WeightsLoader as WeightsLoader
from .data import DataHandler as DataHandler
from .data import DataLoader as DataLoader
from .early_stop import EarlyStop as EarlyStop
from .handlers import HISTORY_NAME as HISTORY_NAME
from .handlers import EpochSeeder as EpochSeeder
from .handlers import HistoryHandler as HistoryHandler
from .intensity import IntensityHandler as IntensityHandler
from .loss_terms import LossTerms as LossTerms
from .progress import ProgressHandler as ProgressHandler
from .sampler import Draw as Draw
from .sampler import RepeatSampler as RepeatSampler
from .trainer import Evaluator as Evaluator
from .trainer import Trainer as Trainer
from .transfer import WeightsTransfer as WeightsTransfer
from .transfer import weights_of as weights_of
