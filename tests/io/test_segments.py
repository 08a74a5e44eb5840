from __future__ import annotations

import pytest

from medunet.errors import ConfigError
from medunet.io.segments import PALETTE, TISSUE, Code, as_segments


def test_background_is_no_segment_by_value_or_by_name():
    assert [s.name for s in as_segments({"nothing": 0, "Background": 7, "cell": 255})] == ["cell"]


def test_segments_come_by_value_and_colours_repeat():
    segments = as_segments({f"s{value}": value for value in range(20, 0, -1)})
    assert [s.value for s in segments] == list(range(1, 21))
    assert segments[0].color == segments[len(PALETTE)].color != segments[1].color


def test_codes_and_colours_of_the_config_are_taken():
    codes = {"liver": {"type": ["10200004", "SCT", "Liver"]}}
    [liver] = as_segments({"bg": 0, "liver": 1}, colors={"liver": [255, 0, 10]}, codes=codes)
    assert liver.color == (255, 0, 10)
    assert (liver.category, liver.type) == (TISSUE, Code("10200004", "SCT", "Liver"))


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"colors": {"spleen": [1, 2, 3]}}, "label_colors of unknown labels .*spleen"),
        ({"codes": {"spleen": {}}}, "label_codes of unknown labels .*spleen"),
        ({"colors": {"liver": [1, 2]}}, "invalid colour for 'liver'"),
        ({"colors": {"liver": [1, 2, 256]}}, "invalid colour for 'liver'"),
        ({"codes": {"liver": {"type": [10200004, "SCT", "Liver"]}}}, "invalid code for 'liver'"),
    ],
)
def test_impossible_options_are_refused(options, cause):
    with pytest.raises(ConfigError, match=cause):
        as_segments({"liver": 1}, **options)
