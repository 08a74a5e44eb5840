"""Reading and writing images: headers are verified before a voxel is used, files are written atomically."""

from .dicom.deidentify import Pseudonyms as Pseudonyms
from .dicom.series import is_dicom as is_dicom
from .dicom.series import is_dicom_folder as is_dicom_folder
from .dicom.series import picture_files as picture_files
from .label import LoadLabeld as LoadLabeld
from .label import is_structure_file as is_structure_file
from .label import label_names as label_names
from .label import read_label as read_label
from .names import output_name as output_name
from .names import split_channel as split_channel
from .names import split_suffix as split_suffix
from .options import ReadOptions as ReadOptions
from .reader import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from .reader import MedunetReader as MedunetReader
from .reader import Volume as Volume
from .reader import read_header as read_header
from .reader import read_volume as read_volume
from .record import ReadRecord as ReadRecord
from .save import RESULT_FORMATS as RESULT_FORMATS
from .save import ResultFormat as ResultFormat
from .save import SavePredictiond as SavePredictiond
from .writer import write_volume as write_volume
