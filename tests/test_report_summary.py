"""Which runs are averaged, and the averages, worked by hand."""

import math

import pytest

from cl_mofo.report import CONVENTION, load_runs, notes, summarise
from cl_mofo.report.paper import paper_table
from cl_mofo.report.summary import entries
from tests.report_runs import SEEDS, make, record, three_seeds, trace_run, write


def test_means_and_sample_deviations_over_three_seeds(tmp_path):
    (row,) = summarise(three_seeds(tmp_path)).to_dict("records")
    assert (row["strategy"], row["n"], row["seeds"]) == ("mofo", 3, "1 2 3")
    # OP 75, 80, 70: deviations 0, 5, -5; (0 + 25 + 25) / (3 - 1) = 25
    assert (row["OP"], row["OP_std"]) == (75, 5)
    # BWT -20, -4, -30: mean -18, deviations -2, 14, -12; (4 + 196 + 144) / 2 = 172
    assert (row["BWT"], row["BWT_std"]) == (-18, pytest.approx(math.sqrt(172)))
    # learned 85, 82, 85: mean 84, deviations 1, -2, 1; (1 + 4 + 1) / 2 = 3
    assert (row["learned"], row["learned_std"]) == (84, pytest.approx(math.sqrt(3)))
    # final row: task0 60, 66, 60: mean 62, (4 + 16 + 4) / 2 = 12
    assert (row["task0"], row["task0_std"]) == (62, pytest.approx(math.sqrt(12)))
    # task1 90, 94, 80: mean 88, (4 + 36 + 64) / 2 = 52
    assert (row["task1"], row["task1_std"]) == (88, pytest.approx(math.sqrt(52)))


def test_one_seed_has_no_deviation(tmp_path):
    frame = summarise([make(tmp_path / "run", SEEDS[1])])
    assert frame.loc[0, "OP"] == 75
    assert math.isnan(frame.loc[0, "OP_std"])


def test_one_task_has_no_backward_transfer(tmp_path):
    frame = summarise([make(tmp_path / "run", [[50]])])
    assert frame.loc[0, "OP"] == 50
    assert math.isnan(frame.loc[0, "BWT"])


def test_there_is_no_mean_where_a_seed_was_not_measured(tmp_path):
    blind = make(tmp_path / "blind", [[None, None], [66, 94]], op=[None, 80], bwt=[None, None])
    frame = summarise([make(tmp_path / "run", SEEDS[1], seed=2), blind])
    assert frame.loc[0, "OP"] == 77.5  # (75 + 80) / 2
    assert math.isnan(frame.loc[0, "BWT"])  # of the blind run's diagonal nothing is known
    assert math.isnan(frame.loc[0, "learned"])


def test_the_order_of_names_in_a_combination_does_not_matter(tmp_path):
    runs = [
        make(tmp_path / "a", SEEDS[1], strategy="replay+mofo", seed=1),
        make(tmp_path / "b", SEEDS[2], strategy="mofo + replay", seed=2),
    ]
    assert summarise(runs)[["strategy", "n"]].values.tolist() == [["replay+mofo", 2]]


def test_strategies_stand_in_the_order_given(tmp_path):
    runs = [*three_seeds(tmp_path, "sequential"), *three_seeds(tmp_path, "hft")]
    assert list(summarise(runs)["strategy"]) == ["sequential", "hft"]


@pytest.mark.parametrize(
    "other",
    [{"suite": "trace"}, {"model": "SmolLM2"}, {"tasks": ["task1", "task0"]}],
    ids=["suite", "model", "order"],
)
def test_runs_of_different_settings_are_not_averaged(tmp_path, other):
    runs = [make(tmp_path / "a", SEEDS[1], seed=1), make(tmp_path / "b", SEEDS[2], seed=2, **other)]
    assert list(summarise(runs)["OP"]) == [75, 80]
    assert any("different suites, models or orders" in note for note in notes(entries(runs)))


def test_an_unfinished_run_enters_no_mean(tmp_path):
    stopped = make(tmp_path / "stopped", [[10, None], [None, None]], seed=4)
    runs = [stopped, *three_seeds(tmp_path)]
    frame = summarise(runs)
    assert list(frame["finished"]) == [True, False]  # the unfinished one last
    assert list(frame["n"]) == [3, 1]
    assert list(frame["OP"]) == [75, 10]
    assert list(frame["tasks_learned"]) == [2, 1]
    assert list(frame["run"]) == ["", "stopped"]
    assert any("Unfinished runs" in note for note in notes(entries(runs)))
    assert not any("Unfinished runs" in note for note in notes(entries(runs[1:])))


def test_two_unlike_runs_of_one_seed_are_not_averaged(tmp_path):
    runs = [make(tmp_path / name, SEEDS[i], seed=1) for i, name in ((1, "a"), (2, "b"))]
    frame = summarise(runs)
    assert frame[["run", "n", "OP"]].values.tolist() == [["a", 1, 75], ["b", 1, 80]]
    assert any("one strategy and seed" in note for note in notes(entries(runs)))


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [make(tmp_path / up / "run", SEEDS[i], seed=1) for i, up in ((1, "a"), (2, "b"))]
    assert list(summarise(runs)["run"]) == [str(tmp_path / "a/run"), str(tmp_path / "b/run")]


def test_a_repeat_of_a_run_counts_once(tmp_path):
    runs = [*three_seeds(tmp_path), make(tmp_path / "again", SEEDS[2], seed=2)]
    frame = summarise(runs)
    assert list(frame["n"]) == [3]
    assert frame.loc[0, "OP_std"] == 5  # with the repeat counted it would be 4.08
    assert any("count once (1 left out)" in note for note in notes(entries(runs)))


def test_runs_whose_recipes_differ_are_averaged_apart(tmp_path):
    def run(fraction, seed):
        recipe = f"""
            seed: {seed}
            save_model: {seed == 1}
            strategy: mofo
            mofo: {{update_fraction: {fraction}, filter_all: false}}
            ewc: {{strength: {seed}}}
        """
        return make(tmp_path / f"{fraction}-{seed}", SEEDS[seed], recipe=recipe, seed=seed)

    runs = [run(fraction, seed) for fraction in (0.05, 0.1) for seed in (1, 2, 3)]
    frame = summarise(runs)
    # neither the seed nor the settings of ewc, which mofo does not use, set runs apart
    assert list(frame["variant"]) == ["mofo.update_fraction=0.05", "mofo.update_fraction=0.1"]
    assert list(frame["n"]) == [3, 3]
    assert list(summarise(runs[:3])["variant"]) == [""]
    assert any("recipes differ" in note for note in notes(entries(runs)))


def test_a_run_without_a_recipe_is_not_averaged_with_one_that_has_it(tmp_path):
    runs = [
        make(tmp_path / "a", SEEDS[1], recipe="optimizer: {lr: 0.1}", seed=1),
        make(tmp_path / "b", SEEDS[2], seed=2),
    ]
    assert list(summarise(runs)["variant"]) == ["", "no recipe.yaml"]


def test_tasks_named_like_columns_keep_columns_of_their_own(tmp_path):
    run = make(tmp_path / "run", SEEDS[1], tasks=["OP", "n"])
    (row,) = summarise([run]).to_dict("records")
    assert (row["OP"], row["n"], row["task OP"], row["task n"]) == (75, 1, 60, 90)


def test_the_papers_figures_stand_beside_the_strategies_of_their_name(tmp_path):
    runs = [
        *three_seeds(tmp_path, "sequential"),
        *three_seeds(tmp_path, "mofo+gem"),
        *three_seeds(tmp_path, "mine"),
        make(tmp_path / "stopped", [[10, None], [None, None]], strategy="ewc"),
    ]
    frame = summarise(runs, paper=True).set_index(["strategy", "finished"])
    figures = frame[["paper_OP", "paper_BWT"]]
    assert figures.loc[("sequential", True)].tolist() == [38.4, -10.3]
    assert figures.loc[("mofo+gem", True)].tolist() == [41.7, -6.7]
    assert figures.loc[("mine", True)].isna().all()
    assert figures.loc[("ewc", False)].isna().all()  # after one task it compares with nothing
    assert figures.loc[("replay+mofo", True)].tolist() == [47.0, 4.8]
    assert frame["n"].tolist() == [3, 3, 3, *[0] * 7, 1]
    assert frame["paper_OP"].count() == 9
    assert any("arXiv 2407.20999v4, Table 2" in note for note in notes(entries(runs, paper=True)))


def test_the_paper_has_nine_rows():
    figures = paper_table()
    assert len(figures) == 9
    assert all(row.bwt < 0 or "replay" in row.strategy for row in figures.values())


def test_the_convention_is_the_first_note():
    assert notes([]) == [CONVENTION]
    for part in ("divisor t-1", "R[t,i] - R[i,i]", "signed", "sample standard deviation (n-1)"):
        assert part in CONVENTION


def test_a_folder_of_runs_is_reported_whole(tmp_path):
    for seed, scores in SEEDS.items():
        write(tmp_path / "outputs" / f"run{seed}", record(scores, seed=seed))
    trace_run(tmp_path / "outputs" / "long", strategy="hft")
    frame = summarise(load_runs([tmp_path / "outputs"])).set_index("strategy")
    # 88.5 less 3 points for each later task: 88.5 - 3 * (0 + ... + 7) / 8 = 78
    assert frame.loc["hft", "OP"] == 78
    assert frame.loc["hft", "BWT"] == -12  # -3 * (1 + ... + 7) / 7
    assert frame.loc["mofo", "n"] == 3
    assert math.isnan(frame.loc["mofo", "FOMC"])


def test_a_tunings_rows_are_told_apart_and_have_no_figures_of_the_papers(tmp_path):
    for seed, split in ((1, "test"), (2, "eval")):
        run = make(tmp_path / split, SEEDS[seed], seed=seed)
        (run.path.parent / "recipe.yaml").write_text(f"evaluation: {{split: {split}}}\n")
    tuned = entries(load_runs([tmp_path / "eval"]), paper=True)
    assert notes(tuned)[1] == "Scored on validation data, not on the test split: all rows"
    both = entries(load_runs([tmp_path]), paper=True)
    figures = {entry.runs[0].split: entry.paper for entry in both if entry.runs}
    assert figures["eval"] is None
    assert figures["test"].op == paper_table()["mofo",].op
    label = 'mofo (evaluation.split="eval")'
    assert f"Scored on validation data, not on the test split: {label}" in notes(both)
    assert not any("validation" in note for note in notes(entries(three_seeds(tmp_path / "more"))))
