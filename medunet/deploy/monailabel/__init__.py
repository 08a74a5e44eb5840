"""medunet bundles behind a MONAI Label server, which 3D Slicer and OHIF talk to.

What is here runs in medunet's own environment; only `app/` needs MONAI Label, which has an environment of its own.
"""

from .environment import LabelEnvironment as LabelEnvironment
from .served import ServedBundle as ServedBundle
from .server import LabelServer as LabelServer
