"""A real MONAI Label server with 3D and 2D bundles and a folder of studies: every request of a client."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from MedUNetLib.client import LabelClient, ServerError

from medunet.bundle import find_bundle
from medunet.deploy.monailabel.results import uncertainty
from medunet.io import read_label, read_volume, write_volume
from medunet.metrics import dice
from medunet.prediction import Predictor
from medunet.runs import train_folds

from .real import SMALL_2D, TOKEN, Client, Rejected, environment, serving, train_2d, train_3d

pytestmark = [pytest.mark.slow, pytest.mark.label, pytest.mark.filterwarnings("ignore")]
SOAK_MINUTES = float(os.environ.get("MEDUNET_SOAK_MINUTES", "0.5"))
CLIENTS, WARM_REQUESTS = 4, 25


@dataclass
class Ward:
    """A server, its bundles and its data."""

    url: str
    folder: Path
    data: Path
    organs: Path
    membranes: Path
    folds: Path
    studies: Path

    @property
    def client(self) -> Client:
        return Client(self.url)

    @property
    def slicer(self) -> LabelClient:
        return LabelClient(self.url, TOKEN)

    def image(self, name: str) -> Path:
        return next(self.studies.glob(f"{name}.*"))

    def truth(self, name: str) -> Path:
        return self.data / "labelsTr" / f"{name}.nii.gz"


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    environment()
    folder = tmp_path_factory.mktemp("ward")
    data, organs = train_3d(folder)
    cells, membranes = train_2d(folder)
    folds = folder / "folds"
    train_folds(find_bundle("unet_2d"), cells, folds, changes=SMALL_2D, device="cpu")
    studies = folder / "studies"
    studies.mkdir()
    for path in [*sorted(data.glob("imagesTr/*"))[:4], *sorted(cells.glob("imagesTr/*"))[:1]]:
        shutil.copy(path, studies)
    with serving([organs, membranes, folds], str(studies), folder) as url:
        yield Ward(url, folder, data, organs, membranes, folds, studies)


def predicted(bundle: Path, image: Path, folder: Path) -> Path:
    return Predictor(bundle, output_dir=folder, device="cpu").predict_case(image)


def test_info_names_models_labels_and_strategies(ward: Ward) -> None:
    info = ward.client.info()
    organs = info["models"]["organs"]
    assert organs["labels"] == {"lungs": 1, "liver": 2, "spleen": 3, "kidneys": 4, "spine": 5}
    assert (organs["type"], organs["dimension"]) == ("segmentation", 3)
    assert info["models"]["membranes"]["dimension"] == 2
    strategies = {"random", "uncertainty_organs", "uncertainty_membranes", "uncertainty_folds"}
    assert set(info["strategies"]) == strategies
    assert set(info["trainers"]) == {"organs", "membranes"}
    assert "dice" in info["scoring"]
    assert ward.slicer.models() == ["folds", "membranes", "organs"]


def test_masks_equal_those_of_the_predictor_in_every_output(ward: Ward, tmp_path: Path) -> None:
    expected = read_volume(predicted(ward.organs, ward.image("ct_000"), tmp_path / "own")).image
    for suffix in (".nii.gz", ".nrrd", ".seg.nrrd"):
        mask = tmp_path / f"mask{suffix}"
        mask.write_bytes(ward.client.ask("POST", "/infer/organs?image=ct_000&output=image", result_extension=suffix))
        image = read_volume(mask).image
        assert np.array_equal(image.numpy(), expected.numpy())
        assert np.allclose(image.affine, expected.affine, atol=1e-4)
    answer = ward.client.json("POST", "/infer/organs?image=ct_000&output=json")
    assert answer["label_names"] == ward.client.info()["models"]["organs"]["labels"]
    assert {"label_colors", "volume_ml", "latencies"} <= set(answer)
    assert b"label_names" in ward.client.ask("POST", "/infer/organs?image=ct_000&output=all")
    ward.slicer.infer("organs", ward.image("ct_000"), tmp_path / "sent.seg.nrrd")
    sent = read_label(tmp_path / "sent.seg.nrrd", reference=ward.image("ct_000"), labels=answer["label_names"]).image
    assert np.array_equal(sent.numpy(), expected.numpy())
    # a picture gives a picture
    picture = read_volume(predicted(ward.membranes, ward.image("cells_000"), tmp_path / "own"), spatial_dims=2).image
    (tmp_path / "mask.png").write_bytes(ward.client.ask("POST", "/infer/membranes?image=cells_000&output=image"))
    assert np.array_equal(read_volume(tmp_path / "mask.png", spatial_dims=2).image.numpy(), picture.numpy())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/infer/organs?image=unknown&output=image", "422: .*not in the datastore"),
        ("/infer/unknown?image=ct_000&output=image", "no model"),
        ("/infer/organs?image=..%2Fct_000&output=image", "must be a name, not a path"),
        ("/infer/organs?output=image", "Neither Image"),
        ("/infer/organs?image=ct_000&output=dicom_seg", "DICOM SEG"),
    ],
)
def test_an_impossible_request_is_rejected_with_a_reason(ward: Ward, path: str, words: str) -> None:
    with pytest.raises(Rejected, match=words):
        ward.client.ask("POST", path)


def test_other_files_clients_without_a_token_and_broken_images_are_rejected(ward: Ward, tmp_path: Path) -> None:
    image = str(ward.data / "imagesTr" / "ct_000.nii.gz")
    with pytest.raises(Rejected, match="is not in the datastore"):
        ward.client.ask("POST", "/infer/organs?image=ct_000&output=json", image=image)
    with pytest.raises(ServerError, match="401"):
        LabelClient(ward.url).models()
    broken, content = tmp_path / "broken.nii.gz", ward.image("ct_000").read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    flat = write_volume(np.full((40, 40, 40), np.nan, np.float32), tmp_path / "nan.nii.gz")
    for path in (broken, flat):
        with pytest.raises(ServerError, match="422: "):
            ward.slicer.infer("organs", path, tmp_path / "mask.seg.nrrd")
    ward.slicer.infer("organs", ward.image("ct_001"), tmp_path / "mask.seg.nrrd")


def test_simultaneous_requests_get_the_answers_of_single_ones(ward: Ward, tmp_path: Path) -> None:
    def ask(number: int, name: str) -> np.ndarray:
        path = tmp_path / f"{number}.seg.nrrd"
        ward.slicer.infer("organs", ward.image(name), path)
        return read_volume(path).image.numpy()

    names = ["ct_000", "ct_001", "ct_002", "ct_003"]
    alone = [ask(number, name) for number, name in enumerate(names)]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(ask, range(8), names * 2)
        assert ward.client.info()["name"] == "medunet"  # answers while the network runs
        assert all(map(np.array_equal, together, alone * 2))


def usage(root: psutil.Process) -> tuple[int, int]:
    """Return memory and handles of a process and its children."""
    family = [root, *root.children(recursive=True)]
    return sum(p.memory_info().rss for p in family), sum(p.num_fds() for p in family)


def test_memory_and_handles_stay_constant_during_many_requests(ward: Ward) -> None:
    """Four clients for MEDUNET_SOAK_MINUTES."""
    (server,) = (process for process in psutil.Process().children() if "uvicorn" in process.cmdline())
    images, done, stop = sorted(ward.studies.glob("ct_*")), [0] * CLIENTS, threading.Event()

    def ask(number: int) -> None:
        while not stop.is_set():
            image = images[done[number] % len(images)]
            ward.client.ask("POST", "/infer/organs", file=image, result_extension=".seg.nrrd")
            done[number] += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask, number) for number in range(CLIENTS)]
        # each client has answers: the network and the reading process are loaded
        while min(done) < WARM_REQUESTS and not any(client.done() for client in clients):
            time.sleep(0.5)
        before = usage(server)
        time.sleep(SOAK_MINUTES * 60)
        stop.set()
    assert [client.result() for client in clients] == [None] * CLIENTS  # an error of a client is raised here
    after = usage(server)
    print(f"{SOAK_MINUTES} minutes, {sum(done)} requests, bytes and handles {before} -> {after}")  # noqa: T201
    assert after[0] <= before[0] * 1.05
    assert after[1] <= before[1] + CLIENTS


def test_active_learning_offers_images_without_a_label(ward: Ward, tmp_path: Path) -> None:
    offered = {ward.client.next_sample("random")["id"] for _ in range(5)}
    assert offered == {"ct_000", "ct_001", "ct_002", "ct_003", "cells_000"}  # each once
    assert ward.client.next_sample("uncertainty_organs")["uncertainty"] > 0
    # folds that were trained on pictures cannot segment the volumes
    offered = ward.client.next_sample("uncertainty_folds")
    assert offered["id"] == "cells_000"
    predictor = Predictor(ward.folds, output_dir=tmp_path, device="cpu")
    expected = uncertainty(predictor, ward.image("cells_000"))
    assert offered["uncertainty"] == pytest.approx(expected, abs=1e-3)


def test_a_corrected_case_is_learnt_and_served(ward: Ward, tmp_path: Path) -> None:
    name = "ct_003"
    path = f"/infer/organs?image={name}&output=image"
    body = ward.client.ask("POST", path, save_label=True, label_tag="original")
    before = mean_dice(ward, body, name, tmp_path)
    saved = ward.client.save_label(name, ward.truth(name))
    assert saved["label"] == name
    store = ward.client.json("GET", "/datastore/?output=all")
    assert {"final", "original"} <= set(store["objects"][name]["labels"])
    assert ward.client.json("GET", "/datastore/")["completed"] == 1
    assert name not in [ward.client.next_sample("random")["id"] for _ in range(5)]
    scores = ward.client.json("POST", "/scoring/dice?run_sync=true", content={})
    assert scores[name]["dice"] == pytest.approx(before, abs=0.01)
    ward.client.ask("POST", "/train/organs", content={"max_epochs": 4, "steps_per_epoch": 15})
    wait_for_training(ward)
    assert ward.client.info()["train_stats"]["organs"]["epoch"] == 4
    after = mean_dice(ward, ward.client.ask("POST", path), name, tmp_path)
    print(f"Dice of the corrected case {before:.3f} -> {after:.3f}")  # noqa: T201
    assert after > before
    assert list((ward.folder / "work" / "trainings" / "organs").glob("001/mlruns.db"))


def mean_dice(ward: Ward, mask: bytes, name: str, folder: Path) -> float:
    (folder / "mask.nii.gz").write_bytes(mask)
    pred, truth = (read_volume(path).image.numpy() for path in (folder / "mask.nii.gz", ward.truth(name)))
    return float(np.mean([dice(pred == label, truth == label) for label in np.unique(truth) if label]))


def wait_for_training(ward: Ward, seconds: float = 900.0) -> None:
    end = time.monotonic() + seconds
    while (status := ward.client.json("GET", "/train/"))["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < end, "the training does not end"
        time.sleep(1)
    assert status["status"] == "DONE", "\n".join(status.get("details", []))


CLIENT_SCRIPT = """
import sys
from monailabel.client import MONAILabelClient
url, token, image, truth = sys.argv[1:]
login = MONAILabelClient(url)
assert login.auth_enabled()

def client():  # one per operation, as in Slicer's extension: a client keeps the headers of its last upload
    new = MONAILabelClient(url)
    new.update_auth(login.auth_token("radiologist", token))
    return new

assert client().auth_valid_token()
info = client().info()
assert "organs" in info["models"], info
path, params = client().infer("organs", "ct_001", {})
assert path.endswith(".nii.gz") and params["label_names"], (path, params)
assert client().next_sample("random", {})["id"]
session = client().create_session(image)["session_id"]
path, params = client().infer("organs", "", {}, session_id=session)
assert path, params
client().remove_session(session)
assert client().upload_image(image, "sent")["image"] == "sent"
assert client().save_label("sent", truth, "final")["label"] == "sent"
assert client().datastore()["objects"]["sent"]["labels"]["final"]
print("client is satisfied")
"""


def test_monai_labels_own_client_works_as_in_slicer(ward: Ward) -> None:
    """3D Slicer's MONAI Label extension has the same client, and logs in by name and password."""
    files = [ward.data / "imagesTr" / "ct_004.nii.gz", ward.truth("ct_004")]
    command = [environment().python, "-c", CLIENT_SCRIPT, ward.url, TOKEN, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "client is satisfied" in done.stdout, done.stderr[-2000:]


def test_the_log_names_no_image(ward: Ward, tmp_path: Path) -> None:
    """After all of the above: answers, errors, scores, a training run, uploads."""
    sent = tmp_path / "Mustermann_Max.nii.gz"
    shutil.copy(ward.image("ct_001"), sent)
    ward.client.ask("PUT", "/datastore/?image=Mustermann_Max", file=sent)
    ward.client.ask("POST", "/infer/organs?image=Mustermann_Max&output=image")
    shutil.copy(sent, ward.studies / "Mustermann_Eva.nii.gz")  # past the server
    ward.client.next_sample("uncertainty_organs")
    ward.client.save_label("Mustermann_Max", ward.truth("ct_001"))
    log = (ward.folder / "server.log").read_text(encoding="utf-8")
    assert "image-" in log
    assert not [line for line in log.splitlines() for name in ("ct_00", "cells_00", "Mustermann") if name in line]
