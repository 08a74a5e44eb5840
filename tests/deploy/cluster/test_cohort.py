"""A cohort of studies: every case is accounted for, here and on a Ray cluster of two machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunet.cli.app import main
from medunet.deploy.cluster import LEDGER_NAME, Outcome, predict_cohort, read_cohort
from medunet.deploy.cluster.ledger import Ledger
from medunet.errors import ConfigError, DataError, SecurityError
from medunet.io import read_volume, write_volume

from .ray_cluster import needs_ray, when

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])

# MONAI, ignite and Ray warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")


def make_cohort(folder: Path, *, cases: int, broken: int = 0, size: int = 16) -> Path:
    """A manifest of small volumes; some are cut files, spread over the cohort."""
    folder.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).normal(size=(size, size, size)).astype(np.float32)
    whole = write_volume(voxels, folder / "template.nii.gz", affine=AFFINE).read_bytes()
    bad = {round(index * cases / broken) for index in range(broken)} if broken else set()
    lines = ["image,name"]
    for index in range(cases):
        path = folder / f"image_{index:04d}.nii.gz"
        path.write_bytes(whole[:200] if index in bad else whole)
        lines.append(f"{path.name},site_{index % 3}/case_{index:04d}")
    manifest = folder / "cohort.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def entries(output: Path) -> list[dict[str, Any]]:
    lines = (output / LEDGER_NAME).read_text().splitlines()
    return [entry for line in lines if "name" in (entry := json.loads(line))]


def test_a_manifest_names_cases(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("image,output\na/x.nii.gz;a/y.nii.gz,one/first.nii.gz\n/data/z_0000.nii.gz;z_0001.nii.gz,\n")
    first, second = read_cohort(manifest, channels=2)
    assert first.images == (tmp_path / "a/x.nii.gz", tmp_path / "a/y.nii.gz")
    assert first.name == "one/first"
    assert second.images[0] == Path("/data/z_0000.nii.gz")
    assert second.name == "z"
    with pytest.raises(DataError, match="channels"):
        read_cohort(manifest, channels=1)


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b", "C:x", ".hidden"])
def test_a_name_stays_in_the_output_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"image,name\na.nii.gz,{name}\n")
    with pytest.raises(SecurityError):
        read_cohort(tmp_path / "m.csv")


def test_two_cases_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image\np1/ct.nii.gz\np2/ct.nii.gz\n")
    with pytest.raises(DataError, match=r"one name.*ct"):
        read_cohort(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("picture\nct.nii.gz\n")
    with pytest.raises(DataError, match="no column"):
        read_cohort(tmp_path / "m.csv")


def test_the_ledger_outlives_a_cut_line(tmp_path: Path) -> None:
    with Ledger(tmp_path, digest="d") as ledger:
        ledger.add(Outcome("a", "written", path="a.nii.gz"))
        ledger.add(Outcome("b", "failed", error="cut"))
    (tmp_path / "a.nii.gz").touch()
    with (tmp_path / LEDGER_NAME).open("a") as file:
        file.write('{"name": "c", "sta')
    with Ledger(tmp_path, digest="d") as ledger:
        assert ledger.is_done("a")
        assert not ledger.is_done("b") and not ledger.is_done("c")
        ledger.add(Outcome("c", "written", path="c.nii.gz"))
    with Ledger(tmp_path, digest="d") as ledger:
        assert set(ledger.outcomes) == {"a", "b", "c"}
        assert not ledger.is_done("c")  # the file is not there
    with pytest.raises(DataError, match="another bundle"):
        Ledger(tmp_path, digest="other")


def test_a_cohort_goes_on_and_accounts_for_every_case(bundle: Path, tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "in", cases=6, broken=2)
    output = tmp_path / "out"
    result = predict_cohort(bundle, manifest, output, device="cpu")
    assert [outcome.name for outcome in result.failed] == ["site_0/case_0000", "site_0/case_0003"]
    assert all("gzip" in str(outcome.error) or "cut" in str(outcome.error) for outcome in result.failed)
    written = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.nii.gz"))
    assert written == [f"site_{index % 3}/case_{index:04d}.nii.gz" for index in (1, 4, 2, 5)]
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}
    # mended, one result lost, the ledger's last lines lost
    (tmp_path / "in" / "image_0000.nii.gz").write_bytes((tmp_path / "in" / "image_0001.nii.gz").read_bytes())
    lines = (output / LEDGER_NAME).read_text().splitlines(keepends=True)
    (output / LEDGER_NAME).write_text("".join(lines[:-2]))
    (output / "site_1/case_0001.nii.gz").unlink()
    seen: list[Outcome] = []
    result = predict_cohort(bundle, manifest, output, device="cpu", report=seen.append)
    assert {outcome.name[-4:]: outcome.status for outcome in seen} == {
        **{"0000": "written", "0001": "written", "0003": "failed", "0004": "there already", "0005": "there already"}
    }
    assert len(result.failed) == 1
    kept = [path for path in before if "0001" not in path.name]
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_the_command_says_what_failed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make_cohort(tmp_path / "in", cases=3, broken=1)
    words = ["medunet", "predict", str(bundle), str(manifest), "--output", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as info:
        main()
    assert info.value.code == 2
    said = capsys.readouterr().err
    assert "site_0/case_0000" in said
    assert "2 of 3 cases have results" in said


def test_without_ray_the_extra_is_named(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"medunet\[ray\]"):
        predict_cohort(bundle, make_cohort(tmp_path / "in", cases=1), tmp_path / "out", where="ray")


def lines_of(output: Path) -> int:
    path = output / LEDGER_NAME
    return len(path.read_text().splitlines()) if path.is_file() else 0


@needs_ray
@pytest.mark.slow
def test_a_machine_that_dies_in_mid_run_loses_nothing(bundle: Path, tmp_path: Path, cluster: Any) -> None:
    manifest, output = make_cohort(tmp_path / "in", cases=60, broken=3), tmp_path / "out"
    victim = next(iter(cluster.worker_nodes))
    killer = when(lambda: lines_of(output) >= 15, lambda: cluster.remove_node(victim, allow_graceful=False))
    result = predict_cohort(bundle, manifest, output, where="ray", device="cpu")
    killer.join()
    assert len(result.outcomes) == result.cases == 60
    assert len(result.failed) == 3
    assert len(list(output.rglob("case_*.nii.gz"))) == 57
    assert max(outcome.attempts for outcome in result.outcomes) > 1  # it did die with cases
    # the same labels as without Ray
    alone = predict_cohort(bundle, manifest, tmp_path / "alone", device="cpu")
    assert {o.name: o.is_done for o in alone.outcomes} == {o.name: o.is_done for o in result.outcomes}
    for name in ("site_1/case_0001", "site_2/case_0059"):
        one, other = (read_volume(folder / f"{name}.nii.gz").image for folder in (output, tmp_path / "alone"))
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    # called again there is nothing to do
    again: list[Outcome] = []
    predict_cohort(bundle, manifest, output, where="ray", device="cpu", report=again.append)
    assert [outcome.status for outcome in again] == ["failed"] * 3


@needs_ray
@pytest.mark.slow
def test_a_case_that_kills_its_process_takes_no_other_with_it(
    bundle: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_cohort(tmp_path / "in", cases=12)
    from medunet.deploy.cluster import pool

    class Poisoned(pool.Resident):  # a case that ends its process, as a fault in a C library does
        def predict(self, case: Any) -> Outcome:
            if case.name.endswith("0005"):
                self.crash()
            return super().predict(case)

    monkeypatch.setattr(pool, "Resident", Poisoned)
    result = predict_cohort(bundle, manifest, tmp_path / "out", where="ray", device="cpu")
    assert [outcome.name for outcome in result.failed] == ["site_2/case_0005"]
    assert "processes have died over this case" in str(result.failed[0].error)
    assert len(list((tmp_path / "out").rglob("case_*.nii.gz"))) == 11


@needs_ray
@pytest.mark.slow
def test_a_thousand_cases_with_twenty_failures_are_all_accounted_for(
    bundle: Path, tmp_path: Path, cluster: Any
) -> None:
    manifest, output = make_cohort(tmp_path / "in", cases=1000, broken=20, size=8), tmp_path / "out"
    result = predict_cohort(bundle, manifest, output, where="ray", device="cpu")
    assert len(result.outcomes) == 1000
    assert len(result.failed) == 20
    assert all(outcome.error for outcome in result.failed)
    assert len(list(output.rglob("case_*.nii.gz"))) == 980
    assert len({entry["name"] for entry in entries(output)}) == len(entries(output)) == 1000
