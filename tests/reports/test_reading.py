"""What choose-reading prints and draws.

covers reports/reading
"""

import re
from xml.etree import ElementTree

import pytest

from pipeline.backbone.every_layer import PARTS
from pipeline.methods.reading_choice import Probed, ReadingChoice
from pipeline.reports.page import as_file
from pipeline.reports.reading import picture, table, values


@pytest.fixture
def choice() -> ReadingChoice:
    """The best is the mean of layer 3 of 4, 0.86; the first that is as good within 0.035 is layer 2."""
    accuracies = {1: 0.7, 2: 0.84, 3: 0.86, 4: 0.85}
    probed = [
        Probed(layers, how, accuracy - 0.2 * (how != "mean"), 0.4, 0.01)
        for layers, accuracy in accuracies.items()
        for how in PARTS
    ]
    return ReadingChoice(probed, 4, 2000, 100, now=probed[-2])


def test_the_table_and_the_lines_to_paste(choice: ReadingChoice) -> None:
    assert table(choice).splitlines() == [
        "accuracy on 100 validation texts of a probe fitted to 2,000 (standard error 0.035)",
        "layers      mean       last      first statistics",
        "     1    0.7000     0.5000     0.5000     0.5000",
        "     2    0.8400+    0.6400     0.6400     0.6400",
        "     3    0.8600*    0.6600     0.6600     0.6600",
        "     4    0.8500     0.6500     0.6500     0.6500",
        "",
        "as configured: 4 layers, first: accuracy 0.6500, log-loss 0.4000",
        "best (*): 3 layers, mean: accuracy 0.8600, log-loss 0.4000; 25% of the layers need not be loaded",
        "  backbone: {layers: 3, pooling: mean}",
        "  backbone.layers=3 backbone.pooling=mean",
        "fewest layers within one standard error (+): 2 layers, mean: accuracy 0.8400, log-loss 0.4000; "
        "50% of the layers need not be loaded",
        "  backbone: {layers: 2, pooling: mean}",
        "  backbone.layers=2 backbone.pooling=mean",
    ]


def test_all_layers_are_null() -> None:
    found = table(ReadingChoice(probed := [Probed(1, how, 0.5, 0.4, 0.01) for how in PARTS], 1, 10, 10, probed[0]))
    assert "best (*): 1 layer, mean" in found and "backbone: {layers: null, pooling: mean}" in found
    assert "need not" not in found and "fewest" not in found


def test_layers_joined_have_a_row_of_their_own() -> None:
    probed = [Probed(1, how, 0.5, 0.4, 0.01) for how in PARTS]
    probed += [Probed([1, 2], "last", 0.9, 0.2, 0.01)]
    assert table(ReadingChoice(probed, 4, 10, 10, probed[-1])).splitlines()[1:] == [
        "layers      mean       last      first statistics",
        "     1    0.5000     0.5000     0.5000     0.5000",
        "[1, 2]               0.9000*",
        "",
        "as configured: layers 1, 2 joined, last: accuracy 0.9000, log-loss 0.2000",
        "best (*): layers 1, 2 joined, last: accuracy 0.9000, log-loss 0.2000; 50% of the layers need not be loaded",
        "  backbone: {layers: [1, 2], pooling: last}",
        "  'backbone.layers=[1, 2]' backbone.pooling=last",
    ]


def test_values_hold_all_that_was_probed(choice: ReadingChoice) -> None:
    found = values(choice)
    assert found["best"] == {"layers": 3, "pooling": "mean", "accuracy": 0.86, "log_loss": 0.4, "c": 0.01}
    assert found["cheapest"]["layers"] == 2 and found["now"]["pooling"] == "first" and len(found["probed"]) == 16


def test_the_picture_needs_no_style_sheet(choice: ReadingChoice) -> None:
    svg = as_file(picture(choice))
    ElementTree.fromstring(svg)
    assert "var(" not in svg and re.search(r'fill="#fcfbf8"', svg)
    assert all(f">{word}<" in svg for word in (*PARTS, "accuracy", "layers that are read"))
