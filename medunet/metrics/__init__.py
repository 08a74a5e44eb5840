"""Metrics: arrays in, numbers out.

Examples:
    >>> import numpy as np
    >>> from medunet.metrics import dice
    >>> dice(np.array([1, 1, 0]), np.array([1, 1, 0]))
    1.0
"""

from .em import BestEMScores as BestEMScores
from .em import EMScores as EMScores
from .em import best_em_scores as best_em_scores
from .em import em_scores as em_scores
from .evaluation import CaseScores as CaseScores
from .evaluation import ClassScores as ClassScores
from .evaluation import Statistics as Statistics
from .evaluation import Summary as Summary
from .evaluation import evaluate_case as evaluate_case
from .evaluation import evaluate_objects as evaluate_objects
from .evaluation import summarise as summarise
from .instances import Overlaps as Overlaps
from .instances import add_counts as add_counts
from .instances import count_objects as count_objects
from .instances import lesion_scores as lesion_scores
from .instances import object_scores as object_scores
from .instances import overlaps as overlaps
from .measurements import growth as growth
from .measurements import measure_labels as measure_labels
from .overlap import dice as dice
from .paired import PairedDifference as PairedDifference
from .paired import holm as holm
from .paired import lower_is_better as lower_is_better
from .paired import paired_difference as paired_difference
from .surface import SurfaceDistances as SurfaceDistances
from .surface import surface_distances as surface_distances
from .tables import CSV_NAME as CSV_NAME
from .tables import write_tables as write_tables
