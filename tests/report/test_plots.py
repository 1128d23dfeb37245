"""The experiment's table and plots, from figures by hand."""

import numpy as np
import pytest
from PIL import Image

from experiments.plot_sprites import HEAD, Row, plots, table
from experiments.scoring import Estimate

pytest.importorskip("matplotlib", reason="pip install -e '.[plots]'")


def row(title, group, at=None, speed=1.0):
    figures = {name: Estimate(0.5, 0.25, 0.75) for name in HEAD}
    return Row(title, group, at, figures | {"speed": Estimate(speed, speed - 0.1, speed + 0.1)})


ROWS = {
    "base_told": row("base", "base"),
    "slow": row("tuned", "fine-tune", speed=0.6),
    "slow_-1": row("away", "line slow", at=-1.0, speed=1.4),
    "dyn": row("dyn", "switch", at=0),
    "con": row("con", "switch", at=1000, speed=0.5),
}


def test_the_table_has_a_line_for_each_row_and_the_interval():
    lines = table(ROWS).splitlines()
    assert len(lines) == 2 + len(ROWS) + 4, "base, fine-tune, line slow, switch"
    assert lines[4] == "| **fine-tune** |" + " |" * len(HEAD)
    assert lines[5].startswith("| tuned | 0.60 (0.50-0.70) |") and "50% (25-75)" in lines[5]
    assert len({line.count("|") for line in lines}) == 1


def test_the_plots_show_what_has_rows(tmp_path):
    plots(ROWS, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["strength.png", "switch.png", "trade_off.png"]
    for path in tmp_path.iterdir():
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert picture.std() > 5 and min(picture.shape[:2]) > 300
    plots({"base_told": ROWS["base_told"]}, tmp_path / "few")
