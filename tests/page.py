"""A page as its reader goes through it: its files are written, its commands run, in order.

What the page shows of a command's output must have come out: whole, but for lines `...`, which
stand for any number of lines. A line `^C` says that the reader interrupts, once it learns.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.forked import command_line, finish, start

BLOCK = re.compile(r"(?:`(?P<file>[\w.]+)`:\n\n)?```(?P<kind>\w+)\n(?P<body>.*?)```", re.DOTALL)
SECONDS = re.compile(r"\b\d+(\.\d+)? s\b")
FIGURE = re.compile(r"[-+±]?\d+\.\d+")
RULE = re.compile(r"─+")
INTERRUPT = "^C"


@dataclass(frozen=True)
class File:
    """A file that the reader writes."""

    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command, and the lines that the page shows of what it prints."""

    line: str
    shown: tuple[str, ...]


def steps(page: str) -> list[File | Command]:
    """Return what the page lets its reader do: its files, and the commands in its `console`s."""
    found: list[File | Command] = []
    for block in BLOCK.finditer(page):
        if block["kind"] == "sh":
            continue  # of an installation, which no test makes
        if block["kind"] != "console":
            assert block["file"], f"no file's name stands before:\n{block['body']}"
            found.append(File(block["file"], block["body"]))
            continue
        for part in re.split(r"^\$ ", block["body"], flags=re.MULTILINE)[1:]:
            line, _, output = re.sub(r"\\\n\s*", "", part).partition("\n")
            found.append(Command(line, tuple(output.rstrip().splitlines())))
    return found


def execute(command: Command, cwd: Path) -> str:
    """Run a command as a shell would; return what it prints."""
    program, *arguments = shlex.split(command.line)
    if program != "cl-mofo":
        words = ["bash", "-c", command.line]
        return subprocess.run(words, cwd=cwd, check=True, capture_output=True, text=True).stdout
    told = cwd / ".told"
    told.unlink(missing_ok=True)
    env = {"COLUMNS": "100", "TRACE_DIR": None}
    process = start(command_line, *arguments, told=told, cwd=cwd, env=env)
    code = 0
    if INTERRUPT in command.shown:
        code, log = 130, cwd / arguments[arguments.index("--out") + 1] / "run.log"
        while process.is_alive() and not (log.is_file() and "learning" in log.read_text()):
            time.sleep(0.005)
        process.send_signal(2)
    ended = finish(process)
    output = told.read_text()
    assert ended == code, f"{command.line}\n{output}"
    return output


def misses(command: Command, output: str, *, figures: bool = True) -> str:
    """Return what the page shows that did not come out, or nothing.

    Seconds may be any, and spaces and rules of tables; whole numbers too, after an interrupt.
    Without `figures`, of a line that holds some the first word is compared.
    """
    lines = output.rstrip().splitlines()
    interrupted, done = INTERRUPT in command.shown, 0
    shown = "\n".join(line for line in command.shown if line != INTERRUPT)
    chunks = [part.splitlines() for part in re.split(r"^\.\.\.$\n?", shown, flags=re.MULTILINE)]

    def essence(line: str) -> list[str]:
        text = RULE.sub("─", SECONDS.sub("S", line))
        if interrupted:
            return re.sub(r"\d+", "N", text).split()
        if figures or not FIGURE.search(text):
            return text.split()
        return FIGURE.sub("F", text).split()[:1]

    wanted = [[essence(line) for line in chunk] for chunk in chunks]
    there = [essence(line) for line in lines]
    for number, chunk in enumerate(wanted):
        end = len(there) - len(chunk)
        for begin in range(done, end + 1):
            anchored = (number > 0 or begin == 0) and (number < len(chunks) - 1 or begin == end)
            if anchored and there[begin : begin + len(chunk)] == chunk:
                done = begin + len(chunk)
                break
        else:
            return "\n".join(chunks[number]) or "nothing more"
    return ""
