"""What this process's log does not name; imported before anything of MONAI Label is started."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from medunet.deploy.monailabel.private_log import PrivateNames, mask_log
from medunet.deploy.monailabel.server import LOG_KEY, SETTINGS_VARIABLE

HIDDEN = PrivateNames(Path(os.environ[SETTINGS_VARIABLE]).with_name(LOG_KEY).read_bytes())
"""Of the server, or of one of the processes that it starts for training."""

mask_log(HIDDEN)

# which files it sees or gets, before anybody can have told their names
for _name in ("monailabel.datastore.local", "monailabel.datastore.dicom", "monailabel.datastore.utils"):
    logging.getLogger(_name).setLevel(logging.WARNING)
