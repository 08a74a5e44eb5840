"""Inference on images of any size, with each voxel computed once."""

from .blended import BlendedInferer as BlendedInferer
from .grids import GridMap as GridMap
from .memory import free_memory as free_memory
from .memory import peak_bytes as peak_bytes
from .overlap_tile import OverlapTileInferer as OverlapTileInferer
from .overlap_tile import TileLogits as TileLogits
from .receptive_field import measure_shapes as measure_shapes
from .restore import restore_labels as restore_labels
from .source_grid import LabelInferer as LabelInferer
from .source_grid import ProbabilityInferer as ProbabilityInferer
from .source_grid import SourceGridInferer as SourceGridInferer
from .tiling import SameSizeShapes as SameSizeShapes
from .tiling import smallest_tile as smallest_tile
from .views import MirrorInferer as MirrorInferer
from .views import ScaleInferer as ScaleInferer
