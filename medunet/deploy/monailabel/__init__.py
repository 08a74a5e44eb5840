"""Serve medunet bundles with MONAI Label, which 3D Slicer and OHIF talk to.

The modules of this package run in medunet's own environment; only `app/` needs MONAI Label's environment.
"""

from .environment import LabelEnvironment as LabelEnvironment
from .served import ServedBundle as ServedBundle
from .server import LabelServer as LabelServer
