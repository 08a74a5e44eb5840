"""Reports: overlays, curves and one self-contained HTML page."""

from __future__ import annotations

from .colours import class_colours as class_colours
from .contact_sheet import ContactSheet as ContactSheet
from .curves import EpochRecord as EpochRecord
from .curves import curves_png as curves_png
from .curves import render_curves as render_curves
from .overlay import overlay_png as overlay_png
from .overlay import render_overlay as render_overlay
from .page import write_report as write_report
