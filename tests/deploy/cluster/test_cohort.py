"""A cohort of studies: every case is accounted for, here and on a Ray cluster of two machines."""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medunet.deploy.cluster import LEDGER_NAME, Outcome, pool, predict_cohort, read_cohort
from medunet.deploy.cluster.ledger import Ledger, bundle_digest
from medunet.deploy.cluster.pool import PredictorActor
from medunet.errors import ConfigError, DataError, SecurityError
from medunet.io import read_volume, write_volume
from medunet.prediction import NamedSource, PredictOptions

from .ray_cluster import needs_ray, when

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])

# MONAI, ignite and Ray warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")


def make_cohort(folder: Path, *, cases: int, broken: int = 0, size: int = 16) -> Path:
    """A cohort file of small volumes; some are cut files, spread over the cohort."""
    folder.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).normal(size=(size, size, size)).astype(np.float32)
    whole = write_volume(voxels, folder / "template.nii.gz", affine=AFFINE).read_bytes()
    bad = {round(index * cases / broken) for index in range(broken)} if broken else set()
    lines = ["image,name"]
    for index in range(cases):
        path = folder / f"image_{index:04d}.nii.gz"
        path.write_bytes(whole[:200] if index in bad else whole)
        lines.append(f"{path.name},site_{index % 3}/case_{index:04d}")
    cohort = folder / "cohort.csv"
    cohort.write_text("\n".join(lines) + "\n")
    return cohort


def written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def test_a_cohort_file_is_read(tmp_path: Path) -> None:
    rows = "image,output\na/x.nii.gz;a/y.nii.gz,one/first.nii.gz\n/data/z_0000.nii.gz;z_0001.nii.gz,\n"
    cohort = written(tmp_path / "m.csv", rows)
    first, second = read_cohort(cohort, channels=2)
    assert first == NamedSource((tmp_path / "a/x.nii.gz", tmp_path / "a/y.nii.gz"), "one/first")
    assert (second.images[0], second.name) == (Path("/data/z_0000.nii.gz"), "z")
    with pytest.raises(DataError, match="channels"):
        read_cohort(cohort, channels=1)


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b", "C:x", ".hidden", "..\\out"])
def test_names_outside_the_output_folder_are_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(SecurityError):
        read_cohort(written(tmp_path / "m.csv", f"image,name\na.nii.gz,{name}\n"))


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ("image\np1/ct.nii.gz\np2/ct.nii.gz\n", "must be unique.*ct"),
        ("picture\nct.nii.gz\n", "no column"),
        ("image,name\na.nii.gz,one\n,two\n\n,\n", "line 3"),
    ],
)
def test_unusable_cohort_files_are_rejected(rows: str, cause: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=cause):
        read_cohort(written(tmp_path / "m.csv", rows))


def test_the_ledger_ignores_a_line_that_was_cut_off(tmp_path: Path) -> None:
    with Ledger(tmp_path, digest="d") as ledger:
        ledger.add(Outcome("a", "written", path="a.nii.gz"))
        ledger.add(Outcome("b", "failed", error="cut"))
    (tmp_path / "a.nii.gz").touch()
    with (tmp_path / LEDGER_NAME).open("a") as file:
        file.write('{"name": "c", "sta')
    with Ledger(tmp_path, digest="d") as ledger:
        assert [ledger.is_done(name) for name in "abc"] == [True, False, False]
        ledger.add(Outcome("c", "written", path="c.nii.gz"))
    with Ledger(tmp_path, digest="d") as ledger:
        assert set(ledger.outcomes) == {"a", "b", "c"}
        assert not ledger.is_done("c")  # its file is missing
    with pytest.raises(DataError, match="another bundle"):
        Ledger(tmp_path, digest="other")


def test_the_digest_of_a_bundle_covers_weights_but_not_checkpoints(tmp_path: Path) -> None:
    for folder in ("configs", "models"):
        (tmp_path / folder).mkdir()
    (tmp_path / "configs" / "inference.json").write_text("{}")
    digests = set()
    for file, content in (("fold_0.pt", b"1"), ("fold_0.pt", b"2"), ("model.safetensors", b"1")):
        (tmp_path / "models" / file).write_bytes(content)
        digests.add(bundle_digest(tmp_path))
    assert len(digests) == 3
    (tmp_path / "models" / "last.pt").write_bytes(b"of a training run")
    assert bundle_digest(tmp_path) in digests


def test_an_interrupted_replacement_resumes(bundle: Path, tmp_path: Path) -> None:
    cohort, output = make_cohort(tmp_path / "in", cases=4), tmp_path / "out"
    predict_cohort(bundle, cohort, output, device="cpu")
    old = {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}

    def stop(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    result = predict_cohort(bundle, cohort, output, device="cpu", replace=True, report=stop)
    assert result.is_interrupted
    assert len(result.outcomes) == 1
    seen: list[Outcome] = []
    predict_cohort(bundle, cohort, output, device="cpu", report=seen.append)
    assert [outcome.status for outcome in seen] == ["written"] * 3  # older results are not skipped
    assert all(path.stat().st_mtime_ns != before for path, before in old.items())


def test_a_bundle_that_the_user_trusts_is_trusted_on_all_machines(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = shutil.copytree(bundle, tmp_path / "foreign")
    path = foreign / "configs" / "inference.json"
    path.write_text(path.read_text().replace('"$import os"', '"$print(1)"'))

    class Elsewhere:
        """A pool of one predictor on a machine without any state."""

        def __init__(self, bundle: Path, options: PredictOptions, *, ray: Any, case_seconds: float) -> None:
            monkeypatch.setenv("MEDUNET_CONFIG_DIR", str(tmp_path / "elsewhere"))
            self.actor = PredictorActor(bundle, options)

        def predict(self, cases: list[Any]) -> Iterator[Outcome]:
            assert self.actor.start() is None
            yield from map(self.actor.predict, cases)
            self.actor._cases.put(None)  # type: ignore[arg-type] # ends the reading thread, which Python waits for at exit

    monkeypatch.setattr("medunet.deploy.cluster.cohort.join_cluster", lambda: "ray")
    monkeypatch.setattr("medunet.deploy.cluster.cohort.RayPool", Elsewhere)
    cohort = make_cohort(tmp_path / "in", cases=1)
    with pytest.raises(SecurityError):
        predict_cohort(foreign, cohort, tmp_path / "out", where="ray", device="cpu")
    assert not predict_cohort(foreign, cohort, tmp_path / "out", where="ray", device="cpu", trust=True).failed


@pytest.mark.parametrize(
    ("resources", "expected"),
    [({"CPU": 16.0, "GPU": 2.0}, [{"num_gpus": 1, "num_cpus": 8}] * 2), ({"CPU": 4.0}, [{"num_cpus": 4}])],
)
def test_each_predictor_gets_a_share_of_the_cores(
    resources: dict[str, float], expected: list[dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = SimpleNamespace(nodes=lambda: [{"NodeID": "a", "Alive": True, "Resources": resources}])
    shares: list[dict[str, float]] = []
    actor = SimpleNamespace(start=SimpleNamespace(remote=lambda: "started"))
    monkeypatch.setattr(pool.RayPool, "_start", lambda self, node, share: shares.append(share) or actor)
    pool.RayPool(Path(), PredictOptions(), ray=ray)._start_missing()
    assert shares == expected


class SimulatedCluster:
    """A cluster of one machine, and its clock: cases take their seconds one after the other, some never end.

    A case that never ends does not delay the others, like one whose download is stuck.
    """

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.now, self.lost = seconds, 0.0, []
        self.ends: dict[str, float] = {}

    def monotonic(self) -> float:
        return self.now

    def start(self, node: str, share: dict[str, float]) -> Any:
        self.ends, free = {"started": self.now}, self.now

        def predict(case: Any) -> str:
            nonlocal free
            end = max(free, self.now) + self.seconds[case.name]
            free = end if np.isfinite(end) else free
            self.ends[case.name] = end
            return case.name

        remote = {"start": lambda: "started", "predict": predict}
        return SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in remote.items()})

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0}}]

    def wait(self, refs: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        first = min(refs, key=self.ends.__getitem__)
        done = self.ends[first] <= self.now + timeout
        self.now = max(self.now, self.ends[first]) if done else self.now + timeout
        return ([first], []) if done else ([], [])

    def get(self, ref: str) -> Outcome | None:
        return None if ref == "started" else Outcome(ref, "written")

    def kill(self, actor: Any) -> None:
        self.lost.append(self.now)

    def predict(self, monkeypatch: pytest.MonkeyPatch, *, case_seconds: float) -> dict[str, Outcome]:
        monkeypatch.setattr(pool, "time", self)
        monkeypatch.setattr(pool.RayPool, "_start", lambda _, *where: self.start(*where))
        cases = [NamedSource((Path(name),), name) for name in self.seconds]
        outcomes = pool.RayPool(Path(), PredictOptions(), ray=self, case_seconds=case_seconds).predict(cases)
        return {outcome.name: outcome for outcome in outcomes}


def test_a_predictor_within_the_limit_per_case_is_not_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = SimulatedCluster({f"case_{index}": 40.0 for index in range(12)})
    outcomes = cluster.predict(monkeypatch, case_seconds=60)
    assert {(outcome.status, outcome.attempts) for outcome in outcomes.values()} == {("written", 1)}
    assert cluster.lost == [12 * 40.0]  # at the end


def test_a_hanging_case_is_detected_while_others_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = SimulatedCluster({f"case_{index}": np.inf if index == 3 else 5.0 for index in range(200)})
    outcomes = cluster.predict(monkeypatch, case_seconds=60)
    assert [name for name, outcome in outcomes.items() if outcome.status == "failed"] == ["case_3"]
    assert outcomes["case_3"].attempts == 3
    assert len(outcomes) == 200
    assert cluster.lost[0] <= 3 * 5 + 60 + pool.LOOK_SECONDS + 5


def test_a_cohort_continues_and_accounts_for_every_case(bundle: Path, tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path / "in", cases=6, broken=2)
    output = tmp_path / "out"
    result = predict_cohort(bundle, cohort, output, device="cpu")
    assert [outcome.name for outcome in result.failed] == ["site_0/case_0000", "site_0/case_0003"]
    assert all("gzip" in str(outcome.error) or "cut" in str(outcome.error) for outcome in result.failed)
    written = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.nii.gz"))
    assert written == [f"site_{index % 3}/case_{index:04d}.nii.gz" for index in (1, 4, 2, 5)]
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}
    # fixed, one result lost, the ledger's last lines lost
    (tmp_path / "in" / "image_0000.nii.gz").write_bytes((tmp_path / "in" / "image_0001.nii.gz").read_bytes())
    lines = (output / LEDGER_NAME).read_text().splitlines(keepends=True)
    (output / LEDGER_NAME).write_text("".join(lines[:-2]))
    (output / "site_1/case_0001.nii.gz").unlink()
    seen: list[Outcome] = []
    result = predict_cohort(bundle, cohort, output, device="cpu", report=seen.append)
    there = dict.fromkeys(("0004", "0005"), "there already")
    expected = {"0000": "written", "0001": "written", "0003": "failed", **there}
    assert {outcome.name[-4:]: outcome.status for outcome in seen} == expected
    assert len(result.failed) == 1
    kept = [path for path in before if "0001" not in path.name]
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_the_command_reports_failures(
    bundle: Path, tmp_path: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = make_cohort(tmp_path / "in", cases=3, broken=1)
    assert medunet("predict", bundle, cohort, "--output", tmp_path / "out", "--device", "cpu") == 3
    printed = capsys.readouterr().err
    assert "site_0/case_0000" in printed
    assert "2 of 3 cases have results" in printed


def test_a_cohort_is_measured_and_reviewed_also_when_it_continues(
    bundle: Path, tmp_path: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, out = make_cohort(tmp_path / "in", cases=3), tmp_path / "out"
    command = ("predict", bundle, cohort, "--output", out, "--device", "cpu")
    names = {f"site_{index}/case_000{index}" for index in range(3)}
    for _ in range(2):
        assert medunet(*command, "--measure", "--review", "--review-below", "1") == 3
        assert "reviewed 3, 0 flagged, 3 below 1" in capsys.readouterr().err
        assert {case["case"] for case in json.loads((out / "review.json").read_text())["cases"]} == names
        assert (out / "review.html").read_text().count("data:image/png") == 3
        assert {row["case"] for row in json.loads((out / "measurements.json").read_text())["measurements"]} == names
        (out / "review.json").unlink()
    assert medunet(*command) == 2
    assert "of other options" in capsys.readouterr().err


def test_without_ray_the_extra_is_named(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"medunet\[ray\]"):
        predict_cohort(bundle, make_cohort(tmp_path / "in", cases=1), tmp_path / "out", where="ray")


@needs_ray
@pytest.mark.slow
def test_a_machine_that_dies_loses_no_case(
    bundle: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, output = make_cohort(tmp_path / "in", cases=60, broken=3), tmp_path / "out"
    victim = next(iter(cluster.worker_nodes))
    doomed, ledger, hangs = victim.node_id, output / LEDGER_NAME, tmp_path / "hangs"

    class Held(pool.PredictorActor):
        """One machine predicts some cases, then hangs with others until it dies; only then the other one begins."""

        def predict(self, case: Any) -> Outcome:
            import ray

            if ray.get_runtime_context().get_node_id() != doomed:
                while not hangs.exists():
                    time.sleep(0.05)
            elif len(ledger.read_text().splitlines()) > 15:
                hangs.touch()
                threading.Event().wait()
            return super().predict(case)

    monkeypatch.setattr(pool, "PredictorActor", Held)
    with when(hangs.exists, lambda: cluster.remove_node(victim, allow_graceful=False)):
        result = predict_cohort(bundle, cohort, output, where="ray", device="cpu")
    assert len(result.outcomes) == result.cases == 60
    assert len(result.failed) == 3
    assert len(list(output.rglob("case_*.nii.gz"))) == 57
    assert max(outcome.attempts for outcome in result.outcomes) > 1  # a worker died while it predicted
    monkeypatch.undo()
    # the same labels as without Ray
    alone = predict_cohort(bundle, cohort, tmp_path / "alone", device="cpu")
    assert {o.name: o.is_done for o in alone.outcomes} == {o.name: o.is_done for o in result.outcomes}
    for name in ("site_1/case_0001", "site_2/case_0059"):
        one, other = (read_volume(folder / f"{name}.nii.gz").image for folder in (output, tmp_path / "alone"))
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    # a second call has nothing to do
    again: list[Outcome] = []
    predict_cohort(bundle, cohort, output, where="ray", device="cpu", report=again.append)
    assert [outcome.status for outcome in again] == ["failed"] * 3


@needs_ray
@pytest.mark.slow
def test_a_case_that_kills_its_process_and_one_that_hangs_delay_no_other(
    bundle: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = make_cohort(tmp_path / "in", cases=12)

    class Poisoned(pool.PredictorActor):
        def predict(self, case: Any) -> Outcome:
            if case.name.endswith("0005"):
                os._exit(1)  # as a fault in a C library does
            if case.name.endswith("0008"):
                threading.Event().wait()  # such as a read from a lost drive
            return super().predict(case)

    monkeypatch.setattr(pool, "PredictorActor", Poisoned)
    result = predict_cohort(bundle, cohort, tmp_path / "out", where="ray", device="cpu", case_seconds=15.0)
    errors = {outcome.name: str(outcome.error) for outcome in result.failed}
    assert errors.keys() == {"site_2/case_0005", "site_2/case_0008"}
    assert all("processes have died over this case" in error for error in errors.values())
    assert "no result in 15 seconds" in errors["site_2/case_0008"]
    assert len(list((tmp_path / "out").rglob("case_*.nii.gz"))) == 10
