"""Output of the label server about DICOM files contains no patient's name; a stub replaces MONAI Label."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from canary import LINKS, SECRETS, WORDS, leaks
from small import untrained_run

from medunet.deploy.monailabel.server import LOG_KEY, SETTINGS_VARIABLE

pytestmark = pytest.mark.filterwarnings("ignore")
PROGRAM = """
import json, logging, os, sys, types
from pathlib import Path

def stub(name, *contents):  # MONAI Label is not installed here
    module = sys.modules[f"monailabel{name}"] = types.ModuleType(name)
    for content in contents:
        setattr(module, content, type(content, (), {"__init__": lambda self, **options: None, "SEGMENTATION": "seg"}))

for name in ("", ".interfaces", ".interfaces.tasks"):
    stub(name)
stub(".interfaces.datastore", "Datastore", "DefaultLabelTag")
stub(".interfaces.tasks.infer_v2", "InferTask", "InferType")
stub(".interfaces.tasks.scoring", "ScoringMethod")
stub(".interfaces.tasks.strategy", "Strategy")
stub(".interfaces.tasks.train", "TrainTask")

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
from medunet.deploy.monailabel.private_log import server_names
server_names()
from medunet.deploy.monailabel.app.tasks import BundleInference
from medunet.deploy.monailabel.served import LoadedBundle, ServedBundle
import pydicom

run, *folders = map(Path, sys.argv[1:])
loaded = LoadedBundle(ServedBundle("organs", run), "cpu")
for os.environ["MEDUNET_ISOLATE"] in ("0", "1"):
    for folder in folders:
        server_names().hide(folder.name)  # as of a request that names its image
        for file in sorted(folder.iterdir()):  # as MONAI Label's datastore does
            header = pydicom.dcmread(file)
            str(header)
        try:
            path, answer = BundleInference(loaded)({"image": str(folder), "result_extension": ".nrrd"})
            print("done", json.dumps(answer))
        except Exception as error:
            logging.getLogger("monailabel.endpoints.infer").exception("%s failed", folder.name)
"""


def test_the_server_prints_nothing_of_a_dicom_header(tmp_path: Path, make_series: Callable[..., Path]) -> None:
    run = untrained_run(tmp_path / "run")
    good = make_series(tmp_path / "in" / "Namix_John", **LINKS, **SECRETS)
    wrong = {"PixelSpacing": "Zyxqwv", "RescaleSlope": "Canarystreet 9", "PatientBirthDate": "Othernix"}
    wrong |= {"StudyInstanceUID": "CANARYPID77", "Rows": "CANARYADM"}
    wrong |= {"PatientAge": "Canaryhistory and more than sixteen letters"}
    broken = []
    for name, value in wrong.items():
        folder = make_series(tmp_path / "in" / f"Brokenix_{name}", **LINKS, **SECRETS)
        file = sorted(folder.iterdir())[1]
        header = pydicom.dcmread(file)
        header[name] = pydicom.DataElement(name, "LO", value)
        header.save_as(file)
        tag = header[name].tag  # the value stays, its kind becomes that of the standard
        start = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
        standard = pydicom.datadict.dictionary_VR(tag).encode()
        file.write_bytes(file.read_bytes().replace(start + b"LO", start + standard))
        broken.append(folder)
    settings, scratch = tmp_path / "settings.json", tmp_path / "scratch"
    settings.with_name(LOG_KEY).write_text("0" * 64)
    scratch.mkdir()
    command = [sys.executable, "-c", PROGRAM, *map(str, (run, good, *broken))]
    environment = {**os.environ, SETTINGS_VARIABLE: str(settings), "TMPDIR": str(scratch)}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=600)
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    assert shown.count("done") >= 2, shown
    assert shown.count("failed") >= 6, shown
    words = {*WORDS, "Namix", "Brokenix"}
    assert not {word for word in words if word in shown.replace(str(tmp_path / "in"), "")}, shown
    assert leaks(scratch, words=words) == set()
