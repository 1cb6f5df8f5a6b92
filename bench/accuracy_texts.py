#!/usr/bin/env python3
"""Writes the longer texts of docs/accuracy.md: code.txt (this project's sources), chat.txt (dialogues), mixed.txt (some of each).

usage: bench/accuracy_texts.py WIKITEXT LONGBENCH OUT

WIKITEXT is WikiText-2's raw test text, LONGBENCH a folder with samsum.jsonl and gov_report.jsonl as MiniLongBench has them ({prompt, ...} a line).
"""

import json
import pathlib
import subprocess
import sys

LENGTH = 90_000  # characters, more than 8192 tokens of any of them


def prompt(folder, task, line):
    return json.loads((folder / f"{task}.jsonl").read_text().splitlines()[line])["prompt"]


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    wikitext, longbench, out = map(pathlib.Path, sys.argv[1:])
    root = pathlib.Path(__file__).resolve().parent.parent
    files = subprocess.run(["git", "ls-files", "src/**/*.cc", "integrations/**/*.cc"], cwd=root, capture_output=True, text=True, check=True)
    code = "".join((root / name).read_text() for name in files.stdout.split())
    first = prompt(longbench, "samsum", 0)
    chat = first[first.index("Dialogue: ") :] + prompt(longbench, "samsum", 4)
    wiki = wikitext.read_text()
    parts = [wiki[:9000], code[:7000], chat[:7000], prompt(longbench, "gov_report", 0)[300:7300], wiki[100_000:109_000]]
    out.mkdir(parents=True, exist_ok=True)
    for name, text in {"code": code[:LENGTH], "chat": chat[:LENGTH], "mixed": "\n\n".join(parts)}.items():
        (out / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    main()
