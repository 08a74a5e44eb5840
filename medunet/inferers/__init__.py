"""Inference on images of any size, with every voxel computed once."""

from .mirror import MirrorInferer as MirrorInferer
from .overlap_tile import OverlapTileInferer as OverlapTileInferer
from .scales import ScaleInferer as ScaleInferer
from .tiling import SameSizeShapes as SameSizeShapes
from .tiling import Tile as Tile
from .tiling import TilePlan as TilePlan
from .tiling import plan_tiles as plan_tiles
from .tiling import smallest_tile as smallest_tile
