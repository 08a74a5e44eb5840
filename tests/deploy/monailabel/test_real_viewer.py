"""OHIF in a real browser: the study opens, the segmentation runs, and it is seen."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from browser import page
from PIL import Image

from .conftest import Clinic
from .real import TOKEN

pytestmark = [pytest.mark.slow, pytest.mark.label, pytest.mark.filterwarnings("ignore")]
MIN_COLOURED = 2000  # pixels of the overlay


def coloured(path: Path) -> int:
    """Return the number of saturated pixels that are not OHIF's blue; the grey image has none."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    warm = pixels[..., :2].max(axis=-1)
    return int(((warm - pixels.min(axis=-1) > 40) & (pixels[..., 2] < warm)).sum())


def test_ohif_shows_the_segmentation(clinic: Clinic, tmp_path: Path) -> None:
    study = pydicom.dcmread(next(clinic.series.glob("*.dcm")), stop_before_pixels=True).StudyInstanceUID
    shots = Path(os.environ.get("MEDUNET_SCREENSHOTS") or tmp_path)
    with page(tmp_path) as tab:
        # as at a login: the browser then gives the token to OHIF's workers too
        tab.open(clinic.url.replace("://", f"://radiologist:{TOKEN}@") + "/info/")
        tab.wait("document.body.innerText.includes('organs')")
        tab.open(f"{clinic.url}/ohif/monai-label?StudyInstanceUIDs={study}")
        tab.wait("!!document.getElementById('monailabelServerURL')")
        tab.wait("document.querySelectorAll('canvas').length > 0")
        connect = "document.querySelector('.settingsTable .actionButton').click()"
        tab.run(f"document.getElementById('monailabelServerURL').value = '{clinic.url}/'; {connect}")
        tab.pause(1)
        tab.run(connect)  # the first press only makes OHIF take the address
        tab.wait("!!document.querySelector('button[title=\"Run Segmentation\"]')")
        tab.pause(12)
        tab.screenshot(shots / "ohif_before.png")
        tab.run("document.querySelector('button[title=\"Run Segmentation\"]').click()")
        tab.wait("document.body.innerText.includes('Successful')")
        tab.pause(6)
        tab.screenshot(shots / "ohif.png")
    before, after = coloured(shots / "ohif_before.png"), coloured(shots / "ohif.png")
    assert after > before + MIN_COLOURED, (before, after)
