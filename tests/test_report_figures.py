"""Figures: they are drawn, show their data, and leave matplotlib as it was."""

import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imread

from cl_mofo.errors import UserError
from cl_mofo.report import closeness, curves, draw, heat_map, load_runs
from tests.report_runs import SEEDS, make, three_seeds, trace_run


def pixels(path):
    """Return the picture as height x width x RGB, 0 to 1."""
    return imread(path)[..., :3]


def share_of(picture, colour, tolerance=0.005):
    """Return the share of pixels of one colour, to the rounding of a PNG."""
    return float(np.mean(np.abs(picture - np.array(colour[:3])).max(axis=-1) < tolerance))


def test_a_heat_map_colours_each_cell_by_its_score(tmp_path):
    run = make(tmp_path / "run", [[100, None], [0, 50]])
    heat_map(run, tmp_path / "new" / "map.png")
    picture = pixels(tmp_path / "new" / "map.png")
    assert picture.shape[1] == 6 * 150  # the least width, at 150 dots an inch
    cividis = colormaps["cividis"]
    cells = [share_of(picture, cividis(score / 100)) for score in (100, 0, 50)]
    assert min(cells) > 0.05
    assert max(cells) - min(cells) < 0.02  # the cells are of one size, but for their figures
    assert share_of(picture, (0.937, 0.937, 0.937)) > 0.05  # the unmeasured cell is grey
    assert share_of(picture, cividis(0.25)) == 0  # and no other score is there


def test_the_colours_of_two_runs_can_be_compared(tmp_path):
    heat_map(make(tmp_path / "run", [[50, None], [20, 30]]), tmp_path / "map.png")
    assert share_of(pixels(tmp_path / "map.png"), colormaps["cividis"](0.5)) > 0.05


def test_a_heat_map_grows_with_the_tasks_and_shows_the_scores_before(tmp_path):
    shapes = []
    for name, initial in (("plain", None), ("initial", [0] * 8)):
        heat_map(trace_run(tmp_path / name, initial=initial), tmp_path / f"{name}.png")
        shapes.append(pixels(tmp_path / f"{name}.png").shape[:2])
    assert shapes[0] == (789, 1380)  # 1.9 + 8 * 0.42 inches by 3.2 + 8 * 0.75
    assert shapes[1] == (852, 1380)  # one row more


def test_figures_of_different_runs_differ_and_of_the_same_run_do_not(tmp_path):
    runs = three_seeds(tmp_path)
    for i, run in enumerate([runs[0], runs[0], runs[1]]):
        heat_map(run, tmp_path / f"map{i}.png")
        curves([run], tmp_path / f"curves{i}.png")
    for kind in ("map", "curves"):
        first, same, other = ((tmp_path / f"{kind}{i}.png").read_bytes() for i in range(3))
        assert first == same  # no time, no version
        assert first != other
        assert b"Software" not in first


def test_curves_have_a_line_for_each_strategy_and_a_band_for_several_seeds(tmp_path):
    mofo, hft = three_seeds(tmp_path, "mofo"), three_seeds(tmp_path, "hft")
    blue, orange = (0, 0x72 / 255, 0xB2 / 255), (0xD5 / 255, 0x5E / 255, 0)
    pale_blue = tuple(1 - 0.2 * (1 - channel) for channel in blue)  # a band of one fifth's density

    def drawn(runs):
        curves(runs, tmp_path / "curves.png")
        picture = pixels(tmp_path / "curves.png")
        return [share_of(picture, colour) for colour in (blue, orange, pale_blue)]

    line, none, no_band = drawn(mofo[:1])
    assert line > 0.001
    assert max(none, no_band) < 0.0002  # but for a pixel at the rim of a line
    _, _, band = drawn(mofo)
    assert band > 0.01
    line, other_line, _ = drawn([mofo[0], hft[1]])
    assert min(line, other_line) > 0.001


def test_closeness_draws_forgetting_and_perplexity_against_the_distance(tmp_path):
    def drawn(*runs):
        closeness(runs, tmp_path / "closeness.png")
        return pixels(tmp_path / "closeness.png")

    def runs(strategy, **figures):
        return make(tmp_path / strategy, SEEDS[1], strategy=strategy, **figures)

    far = runs("far", distance=[0.1, 0.4])
    near = runs("near", distance=[0.1, 0.2], prose_losses=[2.0, 2.5, 3.0])
    nowhere = runs("nowhere")
    blue, orange = (0, 0x72 / 255, 0xB2 / 255), (0xD5 / 255, 0x5E / 255, 0)
    one, two = drawn(far), drawn(far, near)
    assert two.shape[1] > one.shape[1]  # a second panel
    assert share_of(one, orange, tolerance=0.2) == 0
    assert min(share_of(two, blue, tolerance=0.2), share_of(two, orange, tolerance=0.2)) > 0
    assert near.perplexities == pytest.approx((math.e**2, math.e**3))
    assert (drawn(far, near, nowhere) == two).all()
    with pytest.raises(UserError, match="no finished run has a distance"):
        drawn(nowhere)
    assert draw([far], tmp_path / "all") == ["matrix-far.png", "curves.png", "closeness.png"]


def test_odd_runs_are_drawn(tmp_path):
    runs = [
        make(
            tmp_path / "a", SEEDS[1], strategy=r"_$\frac{$", tasks=["$a$", r"$\frac{$"], model="$m$"
        ),
        make(tmp_path / "b", [[None]], strategy="nothing yet"),
        make(tmp_path / "c", [[50]], strategy="one task"),
        trace_run(tmp_path / "d", learned=3, strategy="x" * 300),
    ]
    for run in runs:
        heat_map(run, tmp_path / "map.png")
        assert pixels(tmp_path / "map.png").std() > 0.01
    curves(runs, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").std() > 0.01


def test_what_cannot_be_written_or_drawn_is_refused(tmp_path):
    run = make(tmp_path / "run", SEEDS[1])
    with pytest.raises(UserError, match="cannot be written"):
        heat_map(run, tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        curves([run], tmp_path / "run" / "results.json" / "curves.png")
    with pytest.raises(UserError, match="no run to draw"):
        curves([], tmp_path / "curves.png")


def test_drawing_leaves_no_trace_in_matplotlib(tmp_path):
    make(tmp_path / "run", SEEDS[1])
    code = f"""
import sys, matplotlib
from cl_mofo.report import curves, draw, heat_map, load_runs, load_runs
# Asking for the backend would choose one.
settings = lambda: [(key, matplotlib.rcParams[key]) for key in rc if key != "backend"]
rc = list(matplotlib.rcParams)
before = settings()
runs = load_runs([{str(tmp_path)!r}])
heat_map(runs[0], {str(tmp_path / "map.png")!r})
curves(runs, {str(tmp_path / "curves.png")!r})
print(settings() == before, "matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True False\n"


def test_draw_names_a_picture_for_every_run_even_if_folders_share_a_name(tmp_path):
    for parent in ("a", "b"):
        make(tmp_path / parent / "curves", [[50, None], [20, 30]])
    runs = load_runs([tmp_path])
    names = draw(runs, tmp_path / "pictures")
    assert names == ["matrix-curves.png", "matrix-curves-2.png", "curves.png"]
    assert sorted(names) == sorted(f.name for f in (tmp_path / "pictures").iterdir())
