"""Inference on images of any size, with each voxel computed once."""

from .labels import LabelInferer as LabelInferer
from .labels import SourceGridInferer as SourceGridInferer
from .memory import free_memory as free_memory
from .memory import peak_bytes as peak_bytes
from .overlap_tile import OverlapTileInferer as OverlapTileInferer
from .overlap_tile import TileLogits as TileLogits
from .probabilities import ProbabilityInferer as ProbabilityInferer
from .probabilities import restore_probabilities as restore_probabilities
from .restore import GridMap as GridMap
from .restore import restore_labels as restore_labels
from .tile_size import choose_tiles as choose_tiles
from .tiling import SameSizeShapes as SameSizeShapes
from .tiling import Tile as Tile
from .tiling import TilePlan as TilePlan
from .tiling import plan_tiles as plan_tiles
from .tiling import smallest_tile as smallest_tile
from .views import MirrorInferer as MirrorInferer
from .views import ScaleInferer as ScaleInferer
