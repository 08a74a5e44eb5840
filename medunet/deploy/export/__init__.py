"""A bundle's network as one file for other engines, run and compared with PyTorch before it is called done."""

from .agreement import Agreement as Agreement
from .exporting import FORMATS as FORMATS
from .exporting import Export as Export
from .exporting import export_bundle as export_bundle
from .exporting import find_format as find_format
from .exporting import format_of as format_of
from .formats import ExportFormat as ExportFormat
from .formats import Runner as Runner
from .package import Package as Package
from .package import package_bundle as package_bundle
from .tile_network import ExportedNetwork as ExportedNetwork
from .tile_network import TileNetwork as TileNetwork
from .tile_network import load_tile_network as load_tile_network
