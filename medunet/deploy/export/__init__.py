"""Export a bundle's network to one file for another engine; the file is run and compared with PyTorch."""

from .exporting import Agreement as Agreement
from .exporting import Export as Export
from .exporting import export_bundle as export_bundle
from .formats import FORMATS as FORMATS
from .formats import ExportFormat as ExportFormat
from .network import ExportedNetwork as ExportedNetwork
from .network import TileNetwork as TileNetwork
from .network import load_tile_network as load_tile_network
from .package import Package as Package
from .package import package_bundle as package_bundle
