"""The label server behind nginx with TLS, configured as docs/howto/deploy.md says, under the proxy's name."""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from nginx import NAME, Proxy, proxied

from medunet.io import read_volume, write_volume
from medunet.prediction import Predictor

from .real import TOKEN, environment, serving, train_3d

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.filterwarnings("ignore")]
LARGE = (160, 160, 100)  # voxels of noise, which gzip cannot make smaller than nginx' own limit of 1 MB


@dataclass
class Ward:
    """A label server that only this machine reaches, and the proxy through which others reach it."""

    proxy: Proxy
    organs: Path

    def ask(self, method: str, path: str, *, token: str | None = TOKEN, **options: Any) -> urllib3.BaseHTTPResponse:
        """Send a request as a client that knows the server by the proxy's name."""
        own = {"Host": f"{NAME}:{self.proxy.port}", **options.pop("headers", {})}
        if token is not None:
            own["Authorization"] = f"Bearer {token}"
        named = {"server_hostname": NAME, "assert_hostname": NAME, "ca_certs": str(self.proxy.certificate)}
        with urllib3.HTTPSConnectionPool("127.0.0.1", self.proxy.port, timeout=300, **named) as pool:
            return pool.request(method, path, headers=own, redirect=False, retries=False, **options)


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    environment()
    folder = tmp_path_factory.mktemp("proxied")
    data, organs = train_3d(folder, epochs=1)
    with serving([organs], str(data / "imagesTr"), folder) as url, proxied(url, folder / "nginx") as proxy:
        yield Ward(proxy, organs)


def test_the_server_accepts_the_token_and_the_origin_of_the_proxy(ward: Ward) -> None:
    own = f"https://{NAME}:{ward.proxy.port}"
    assert [ward.ask("GET", "/info/", token=token).status for token in (None, "another")] == [401, 401]
    answer = ward.ask("GET", "/info/", headers={"Origin": own})
    assert (answer.status, set(answer.json()["models"])) == (200, {"organs"})
    assert ward.ask("GET", "/info/", headers={"Origin": "https://elsewhere.example.org"}).status == 403
    redirect = ward.ask("GET", "/datastore")
    assert (redirect.status, redirect.headers["Location"]) == (307, f"{own}/datastore/")


def test_a_large_image_may_be_sent_and_its_mask_is_that_of_the_predictor(ward: Ward, tmp_path: Path) -> None:
    voxels = np.frombuffer(secrets.token_bytes(2 * np.prod(LARGE)), np.int16).reshape(LARGE)
    image = write_volume(voxels, tmp_path / "large.nii.gz", affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert image.stat().st_size > 4_000_000
    fields = {"params": json.dumps({"result_extension": ".nii.gz"}), "file": ("large.nii.gz", image.read_bytes())}
    answer = ward.ask("POST", "/infer/organs?output=image", fields=fields)
    assert answer.status == 200, answer.data[:500]
    (tmp_path / "mask.nii.gz").write_bytes(answer.data)
    expected = Predictor(ward.organs, output_dir=tmp_path / "own", device="cpu").predict_case(image)
    masks = [read_volume(path).image.numpy() for path in (tmp_path / "mask.nii.gz", expected)]
    assert np.array_equal(*masks)
