"""Writes the generated parts of the documentation: pages, tables and pictures.

python -m tools.pages            writes all
python -m tools.pages --check    exits with 1 if a file differs from the program or from its results
"""

import argparse
import sys
from pathlib import Path

from tools.house import ROOT
from tools.pages.commands import commands_page
from tools.pages.glossary import glossary_script
from tools.pages.pictures import closeness_picture, read_comparisons
from tools.pages.tables import with_tables

DOCS = ROOT / "docs"


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or compare them with their sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    texts = generated_files()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        name = path.relative_to(ROOT)
        print(f"{name}: out of date; run python -m tools.pages" if check else f"{name}: written")
        if not check:
            path.write_text(texts[path], encoding="utf-8")
    return int(check and bool(stale))


def generated_files() -> dict[Path, str]:
    """The text of every generated file."""
    files = {
        DOCS / "commands.md": commands_page(),
        DOCS / "closeness.svg": closeness_picture(read_comparisons(DOCS / "results" / "closeness.toml")),
    }
    files[ROOT / "cluster" / "service" / "web" / "glossary.js"] = glossary_script(
        (DOCS / "glossary.md").read_text(encoding="utf-8")
    )
    pages = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    for path in pages:
        if path not in files and "<!-- table:" in (text := path.read_text(encoding="utf-8")):
            files[path] = with_tables(text)
    return files


if __name__ == "__main__":
    sys.exit(main())
