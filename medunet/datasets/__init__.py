"""Data sets: what lies in a folder, whether it can be used, and made data with exact labels."""

from .check import CaseView as CaseView
from .check import check_dataset as check_dataset
from .check import check_pair as check_pair
from .check import survey as survey
from .comparison import named_sides as named_sides
from .datalist import datalist as datalist
from .datalist import list_inputs as list_inputs
from .datalist import open_dataset as open_dataset
from .dataset import Case as Case
from .dataset import SegmentationDataset as SegmentationDataset
from .dataset import split_fold as split_fold
from .examination import Examination as Examination
from .examination import examine as examine
from .finding import Finding as Finding
from .finding import raise_on_error as raise_on_error
from .labels import label_values as label_values
from .pairing import label_files as label_files
from .phantom import make_phantom as make_phantom
from .phantom import write_phantom_dataset as write_phantom_dataset
from .statistics import CaseStatistics as CaseStatistics
from .store import StoreDataset as StoreDataset
from .store import foreground_indices as foreground_indices
