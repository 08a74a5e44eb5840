"""Inside of Slicer, the module's library is on the path; here this file adds it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "medunet" / "deploy" / "slicer" / "MedUNet"))
