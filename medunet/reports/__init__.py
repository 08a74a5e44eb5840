"""Reports: overlays, curves, distributions and one self-contained HTML page."""

from .classes import ClassCodes as ClassCodes
from .classes import class_colours as class_colours
from .contact_sheet import ContactSheet as ContactSheet
from .curves import render_curves as render_curves
from .objects import OBJECT_COLOURS as OBJECT_COLOURS
from .objects import object_layers as object_layers
from .objects import object_maps as object_maps
from .overlay import render_objects as render_objects
from .overlay import render_overlay as render_overlay
from .page import RunResults as RunResults
from .page import Setting as Setting
from .page import class_names as class_names
from .page import lowest_dice as lowest_dice
from .page import write_figures as write_figures
from .page import write_report as write_report
from .stack import Stack as Stack
from .stack import pack_case as pack_case
