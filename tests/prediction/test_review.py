"""The expected Dice of a result, and flags for what training never had."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError
from medunet.prediction import Predictor
from medunet.prediction.configuration import CALIBRATION
from medunet.prediction.review import (
    Review,
    Reviewer,
    describe_case,
    find_flags,
    fit_reviews,
    measure_agreement,
    predict_dice,
    summarise_facts,
)
from tests.support.small import untrained_run


def item(labels: np.ndarray, *, spacing: float = 1.0, sign: float = 1.0, modality: str = "MR") -> dict:
    meta = {"original_affine": np.diag([spacing, 1, 1, 1]), "spatial_shape": labels.shape, "modality": modality}
    voxels = sign * torch.linspace(-1, 3, labels.size).reshape(1, *labels.shape)
    return {"image": MetaTensor(voxels, meta=meta), "pred": torch.from_numpy(labels)[None]}


def facts(labels: np.ndarray, **options: Any) -> dict:
    return describe_case(item(labels, **options)["image"], labels, {"organ": [1]})


def test_only_what_training_never_had_is_flagged() -> None:
    organ = np.zeros((12, 12, 12), np.uint8)
    organ[3:9, 3:9, 3:9] = 1
    training = summarise_facts([facts(organ), facts(organ, spacing=1.2)])
    assert find_flags(facts(organ, spacing=1.1), training) == ()
    two, large, cut = organ.copy(), np.zeros_like(organ), np.roll(organ, 3, axis=1)
    two[0:1, 0:1, 0:1] = 1
    large[1:11, 1:11, 1:11] = 1
    flags = {
        "spacing mm": find_flags(facts(organ, spacing=2), training),
        "organ size": find_flags(facts(large), training),
        "organ components": find_flags(facts(two), training),
        "organ touches the border": find_flags(facts(cut), training),
        "modality": find_flags(facts(organ, modality="CT"), training),
        "intensity percentiles": find_flags(facts(organ, sign=-1), training),
        "organ size: 0": find_flags(facts(np.zeros_like(organ)), training),
    }
    assert all(any(flag.startswith(start) for flag in found) for start, found in flags.items()), flags
    assert [len(flags[key]) for key in ("organ size", "organ components", "modality")] == [1, 2, 1]
    assert flags["organ touches the border"] == ("organ touches the border: yes; training had no",)


def test_intervals_cover_90_percent_of_other_cases_and_flags_and_sizes_bound_the_expected_dice(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def rows(count: int) -> list[dict]:
        agreement = random.uniform(0.4, 0.95, count)
        dices = np.clip(1 - 1.2 * (1 - agreement) * np.exp(random.normal(0, 0.3, count)), 0, 1)
        rows = [{"agreement": {"organ": a}, "dice": {"organ": d}} for a, d in zip(agreement, dices, strict=True)]
        return [row for row in rows for _ in range(2)]  # a case and its copy

    organ, small, nothing = (np.zeros((12, 12, 12), np.uint8) for _ in range(3))
    organ[3:9, 3:9, 3:9], small[4:6, 4:7, 4:7] = 1, 1
    document = {**fit_reviews(rows(200), ["organ"]), "training": summarise_facts([facts(organ)])}
    (tmp_path / "docs").mkdir()
    (tmp_path / CALIBRATION).write_text(json.dumps(document))
    reviewer = Reviewer(tmp_path, {"organ": [1]})
    reviews = [(reviewer.review({**item(organ), **row}, ""), row["dice"]["organ"]) for row in rows(500)]
    assert 0.85 < np.mean([one.low <= true <= one.high for one, true in reviews]) < 0.95
    assert np.mean([abs(one.expected_dice - true) for one, true in reviews]) < 0.1
    certain = {"agreement": {"organ": 0.95}}
    flagged = reviewer.review({**item(organ, modality="CT"), **certain}, "")
    assert (flagged.low, flagged.expected_dice) == (0, reviewer.review({**item(organ), **certain}, "").expected_dice)
    assert reviewer.review({**item(small), **certain}, "").expected_dice == pytest.approx(2 * 18 / (18 + 216))
    small[:] = organ
    small[3, 3:9, 3:6] = 0  # less than 10 % smaller: no flag
    slight = reviewer.review({**item(small), **certain}, "")
    assert slight.flags == ()
    assert slight.low <= slight.expected_dice <= 2 * 198 / (198 + 216) < slight.high
    missing = reviewer.review({**item(nothing), "agreement": {}}, "")
    assert (missing.expected_dice, missing.is_below(0.8), missing.score) == (0, True, 0)


def test_cases_that_are_all_good_do_not_hide_what_a_low_agreement_means() -> None:
    random = np.random.default_rng(0)
    rows = [{"agreement": {"organ": a}, "dice": {"organ": 0.9}} for a in random.uniform(0.9, 1, 40)]
    (line,) = fit_reviews(rows, ["organ"])["classes"].values()
    assert line["slope"] == 1
    assert predict_dice(line, [0.95, 0.1]) == pytest.approx([0.9, 0.05], abs=0.02)


def test_agreement_is_that_of_views_and_an_ensemble_shares_them_out(
    bundle: Path, other_fold: Path, volume: Path
) -> None:
    predictor = Predictor(bundle, device="cpu")
    image = predictor.preprocessing({"image": str(volume)})["image"]
    alone = measure_agreement(predictor, image)
    assert set(alone) <= set(predictor.structures)
    assert all(0 <= value < 1 for value in alone.values())
    with torch.no_grad():  # a network that ignores its input: the same label everywhere
        for parameter in predictor.network.parameters():
            parameter.zero_()
        next(p for p in reversed([*predictor.network.parameters()]) if len(p) == len(predictor.label_values))[1] = 1
    assert measure_agreement(predictor, image) == {next(iter(predictor.structures)): 1.0}
    joined = Predictor(bundle, device="cpu", ensemble=[other_fold])
    assert measure_agreement(joined, image) != alone


def test_a_run_without_calibration_is_reviewed_by_its_agreement(bundle: Path, volume: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle, output_dir=tmp_path / "out", device="cpu", review=True)
    (result,) = predictor.predict([volume])
    review = result.review
    assert isinstance(review, Review)
    assert (review.case, review.is_calibrated, review.expected_dice, review.flags) == ("case", False, None, ())
    assert review.score == review.agreement
    assert predictor.decide(volume)["review"] == review
    assert json.loads(json.dumps(review.as_dict()))["classes"] == review.classes


def test_a_calibration_of_other_classes_is_rejected(tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run")
    (run / CALIBRATION).write_text('{"classes": {"spleen": {}}}')
    with pytest.raises(ConfigError, match="does not fit the bundle"):
        Predictor(run, device="cpu", review=True)
