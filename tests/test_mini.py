"""The embedded suite: the same everywhere, no leaks, balanced, and its answers are right."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from cl_mofo.mini import TASKS, meeting_bank, minuten, num_glue, records, science_qa
from cl_mofo.mini.c_stance import CLAIMS as CHINESE_CLAIMS
from cl_mofo.mini.fomc import CLAIMS as BANK_CLAIMS
from cl_mofo.mini.world import texts

SUITE = records(0)
# Changes whenever a record does: then pre-train `tiny` again and measure the suite again.
SHA256 = "2ff174a238b3f7406433b1476e1182ddfad1e9d87a09aa369be60b4a0b5e3694"


def every(task):
    return [row for rows in SUITE[task].values() for row in rows]


def test_the_same_records_everywhere():
    code = (
        "import json, hashlib, sys; from cl_mofo.mini import records;"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules;"
        "print(hashlib.sha256(json.dumps(records(0), sort_keys=True).encode()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    here = hashlib.sha256(json.dumps(SUITE, sort_keys=True).encode()).hexdigest()
    assert seen == {here} == {SHA256}


def test_names_and_sizes_are_as_asked():
    assert (
        list(SUITE)
        == list(TASKS)
        == [
            *("C-STANCE", "FOMC", "MeetingBank", "Py150"),
            *("ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"),
        ]
    )
    for splits in SUITE.values():
        assert {name: len(rows) for name, rows in splits.items()} == {
            "train": 128,
            "eval": 32,
            "test": 40,
        }
    small = records(3, train=5, eval=0, test=2)
    assert {len(s["train"]) for s in small.values()} == {5}
    assert {len(s["eval"]) for s in small.values()} == {0}
    assert all(set(row) == {"prompt", "answer"} for task in TASKS for row in every(task))
    assert all(row["prompt"] and row["answer"] for task in TASKS for row in every(task))


def test_another_seed_is_another_suite():
    other = records(1)
    for task in TASKS:
        before = {row["prompt"] for row in SUITE[task]["train"]}
        assert len(before & {row["prompt"] for row in other[task]["train"]}) < 64


def test_the_world_is_large_enough_for_700_and_says_where_it_ends():
    big = records(0, train=500, eval=100, test=100)
    for splits in big.values():
        prompts = [row["prompt"] for rows in splits.values() for row in rows]
        assert len(prompts) == len(set(prompts)) == 700
    with pytest.raises(ValueError, match=r"no new prompt in 1000 draws .* ask for fewer records"):
        records(0, train=100_000, eval=0, test=0)
    with pytest.raises(ValueError, match="eval=-1 is negative"):
        records(0, eval=-1)


@pytest.mark.parametrize("task", TASKS)
def test_no_prompt_twice(task):
    prompts = [row["prompt"] for row in every(task)]
    assert len(set(prompts)) == len(prompts) == 200


@pytest.mark.parametrize("task", TASKS)
def test_texts_for_pretraining_hold_no_prompt(task):
    stream = texts("test")
    read = "\n".join(next(stream) for _ in range(3000))
    instruction = SUITE[task]["test"][0]["prompt"].split("\n")[0]
    assert instruction not in read
    assert not any(row["prompt"] in read for row in every(task))


@pytest.mark.parametrize("task", ["C-STANCE", "FOMC", "ScienceQA"])
@pytest.mark.parametrize("split", ["train", "eval", "test"])
def test_letters_are_balanced_and_mixed(task, split):
    letters = [row["answer"][0] for row in SUITE[task][split]]
    counts = Counter(letters)
    assert set(counts) == set("ABC")
    assert max(counts.values()) - min(counts.values()) <= 1
    assert "".join(letters[:12]) != "ABC" * 4


def test_outcomes_are_balanced():
    summaries = [row["answer"] for row in SUITE["MeetingBank"]["test"]]
    counts = [sum(s.endswith(f"was {o}.") for s in summaries) for o, _ in meeting_bank.OUTCOMES]
    assert sorted(counts) == [13, 13, 14]
    plain = [row["answer"] for row in SUITE["20Minuten"]["test"]]
    assert [sum(f" {p}. " in s for s in plain) for _, p in minuten.ACTIONS] == [8] * 5


def test_chinese_stance_follows_from_what_is_said_of_the_object():
    for row in every("C-STANCE"):
        text, asked = re.search(r"文本：\n(.*)\n对象：\n(.*)\n态度：$", row["prompt"]).groups()
        stances = {
            s
            for s, claims in enumerate(CHINESE_CLAIMS)
            for c in claims
            if c.format(o=asked) in text
        }
        assert stances == {"ABC".index(row["answer"])}


def test_monetary_stance_follows_from_the_main_clause():
    for row in every("FOMC"):
        text = row["prompt"].split("\n")[2]
        main = re.sub(r"^Although [^,]*, |, although .*$", "", text)
        stances = [s for s, claims in enumerate(BANK_CLAIMS) if any(c in main for c in claims)]
        assert stances == ["ABC".index(row["answer"])]


def test_summaries_take_every_fact_from_the_transcript():
    endings = {end: outcome for outcome, ends in meeting_bank.OUTCOMES for end in ends}
    for row in every("MeetingBank"):
        topic, place, member, outcome = re.fullmatch(
            r"A bill relating to (.*) in (.*), moved by (.*), was (.*)\.", row["answer"]
        ).groups()
        transcript = row["prompt"].split("\n")[2]
        assert f"relating to {topic} in {place}." in transcript
        assert f"Moved by {member}." in transcript or f"{member} moves" in transcript
        assert [o for end, o in endings.items() if transcript.endswith(end)] == [outcome]


def test_simplifications_say_the_notice_in_plain_words():
    for row in every("20Minuten"):
        notice = row["prompt"].split("\n")[3]
        where, action, reason = re.fullmatch(
            r"(Die .* in .*) wird (ab \S+ .*)\. Grund: (.*)\.", row["answer"]
        ).groups()
        assert where.replace("Die", "die") in notice
        time, plain = action.rsplit(" ", 1)
        assert time in notice
        assert [p for stiff, p in minuten.ACTIONS if stiff in notice] == [plain]
        assert [r for stiff, r in minuten.REASONS if stiff in notice] == [reason]


def test_code_is_in_traces_spelling_and_the_next_line_completes_it():
    for row in every("Py150"):
        assert row["prompt"].startswith("<s> ")
        assert row["prompt"].endswith(" : <EOL>")
        assert "\n" not in row["prompt"]
        assert "<EOL>" not in row["answer"]
        lines = row["prompt"][len("<s> ") :].removesuffix(" <EOL>").split(" <EOL> ")
        compile(_as_python([*lines, row["answer"]]), "record", "exec")


def _as_python(lines):
    """Lay token-style lines out as Python: indent after a colon, out for `except` and `def`."""
    depth, source = 0, []
    for line in lines:
        if line.startswith("except"):
            depth -= 1
        elif line.startswith("def ") and depth == 2:
            depth = 1
        source.append("    " * depth + re.sub(r"<NUM_LIT:(\d+)>", r"\1", line))
        depth += line.endswith(":")
    return "\n".join(source)


def test_the_right_choice_is_the_only_one_that_fits():
    for row in every("ScienceQA"):
        fact = re.search(r"Which animal (.*)\?", row["prompt"])[1]
        names = re.findall(r"^[ABC]\. (.*)$", row["prompt"], re.M)
        aspect = 2 if fact.startswith("eats") else 1 if fact.startswith("lives") else 0
        fitting = [n for n in names if science_qa.phrase(n, aspect) == fact]
        assert row["answer"] == f"{'ABC'[names.index(fitting[0])]}\nThe {fitting[0]} {fact}."
        assert len(fitting) == 1
        assert len(set(names)) == 3


def _solve(question):
    """Work a number problem out from its words alone."""
    a, *rest = (int(n) for n in re.findall(r"\d+", question))
    if "dollars a day" in question or "newtons" in question:
        return a * rest[0]
    if "eats" in question:
        return a - rest[0]
    if "meters in" in question:
        assert a % rest[0] == 0
        return a // rest[0]
    if "molecule" in question:
        first, second = re.search(r"of \d+ (\w+) and 1 (\w+)\.", question).groups()
        weights = {"hydrogen": 1, "helium": 4, "carbon": 12, "nitrogen": 14, "oxygen": 16}
        return a * weights[first] + weights[second]
    if "moles" in question:
        source, product = re.search(r"moles of (\w+)\. How many moles of (\w+)", question).groups()
        return a * num_glue.REACTIONS[source, product]
    has = {"spider": 8, "dog": 4, "hen": 2, "bee": 6, "car": 4, "bike": 2, "week": 7, "hand": 5}
    return a * has[re.search(r"\d+ (\w+)s\.", question)[1]]


@pytest.mark.parametrize("task", ["NumGLUE-cm", "NumGLUE-ds"])
def test_number_problems_are_right(task):
    answers = []
    for row in every(task):
        assert row["answer"] == str(_solve(row["prompt"].split("\n")[2]))
        answers.append(row["answer"])
    assert max(Counter(answers).values()) < 30  # no one number pays
