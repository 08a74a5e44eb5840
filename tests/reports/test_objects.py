"""Pictures of objects: neighbours differ in colour, and errors are marked."""

import io

import numpy as np
from PIL import Image

from medunet.metrics import evaluate_objects
from medunet.reports import (
    OBJECT_COLOURS,
    RunResults,
    lowest_dice,
    object_layers,
    object_maps,
    pack_case,
    render_overlay,
    write_report,
)

CODES = {name: value for value, name in enumerate(OBJECT_COLOURS, start=1)}


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Return a prediction with one error of each kind, and its reference."""
    ref, pred = np.zeros((40, 60), int), np.zeros((40, 60), int)
    ref[2:10, 2:10], ref[2:10, 10:18], pred[2:10, 2:10], pred[2:10, 10:18] = 1, 2, 1, 2  # found, touching
    ref[2:10, 30:40], ref[2:10, 40:50], pred[2:10, 30:50] = 3, 4, 3  # merged
    ref[20:30, 2:18], pred[20:30, 2:10], pred[20:30, 10:18] = 5, 4, 5  # split
    ref[20:30, 30:36], pred[32:38, 50:58] = 6, 6  # missed, spurious
    return pred, ref


def test_neighbours_differ_and_errors_have_colours_of_their_own():
    pred, ref = pair()
    shown, reference = object_maps(pred.astype(np.float32), ref)
    assert shown[5, 5] != shown[5, 15]
    assert (shown[5, 40], shown[35, 55]) == (CODES["merged"], CODES["spurious"])
    assert (reference[25, 10], reference[25, 33]) == (CODES["split"], CODES["missed"])
    assert np.array_equal(shown > 0, pred > 0)
    grid = np.kron(np.arange(1, 65).reshape(8, 8), np.ones((5, 5), int))
    colours, _ = object_maps(grid, grid)
    assert np.all(colours[4:-1:5] != colours[5::5])
    assert np.all(colours[:, 4:-1:5] != colours[:, 5::5])


def test_an_overlay_draws_objects_and_errors_in_their_colours():
    shown, reference = object_maps(*pair())
    labels = {"background": 0, **CODES}
    content = render_overlay(np.zeros((40, 60)), shown, reference, labels=labels, colours=OBJECT_COLOURS)
    pixels = {tuple(pixel) for pixel in np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).reshape(-1, 3)}
    for name in ("objects", "merged", "spurious", "split", "missed"):
        assert tuple(bytes.fromhex(OBJECT_COLOURS[name][1:])) in pixels


def test_a_page_on_objects_has_their_scores_and_layers(tmp_path):
    labels = {"background": 0, "nucleus": 1}
    pred, ref = pair()
    cases = [
        evaluate_objects(*both, labels=labels, name=name) for name, both in (("b", (ref, ref)), ("a", (pred, ref)))
    ]
    shown, reference = object_maps(pred, ref)
    stacks = {"a": pack_case(np.zeros((1, 40, 60)), [reference, shown])}
    runs = [RunResults("one", cases=cases, unit="px"), RunResults("two", cases=cases, unit="px")]
    assert list(lowest_dice(runs)) == ["a", "b"]
    for count in (1, 2):
        path = write_report(tmp_path / "page.html", runs[:count], title="t", stacks=stacks, layers=object_layers())
        text = path.read_text(encoding="utf-8")
        assert "AP at IoU 0.5" in text
        assert "HD95</button>" not in text
        assert '"name":"missed","colour":"#ffd400","marked":true' in text
