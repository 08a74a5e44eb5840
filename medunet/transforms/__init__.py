"""MONAI dictionary transforms that medunet adds: labels, deformation, border weights, intensity, components."""

from .batch_intensity import BatchIntensity as BatchIntensity
from .body import AboveThreshold as AboveThreshold
from .border_weights import BorderWeightMapd as BorderWeightMapd
from .border_weights import border_weight_map as border_weight_map
from .cells import SeparateCellsd as SeparateCellsd
from .cells import separate_cells as separate_cells
from .intensity import RandNoised as RandNoised
from .labels import IGNORE_INDEX as IGNORE_INDEX
from .labels import BlankIgnoredd as BlankIgnoredd
from .labels import DecideLabelsd as DecideLabelsd
from .labels import DecodeLabelsd as DecodeLabelsd
from .labels import EncodeLabelsd as EncodeLabelsd
from .normalise import NormalizeChannelsd as NormalizeChannelsd
from .postprocess import CleanComponentsd as CleanComponentsd
from .postprocess import Components as Components
from .postprocess import clean_labels as clean_labels
from .regions import RegionMasksd as RegionMasksd
from .regions import paint_regions as paint_regions
from .sides import SwapLabels as SwapLabels
from .sides import check_pairs as check_pairs
from .sides import swapped_channels as swapped_channels
from .spatial import RandDeformd as RandDeformd
