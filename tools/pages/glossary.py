"""The words of the glossary for the page of the service, which is installed without the documentation."""

import json
import re

_ROW = re.compile(r"^\| \*\*(.+?)\*\* \| (.+) \|$", re.MULTILINE)


def glossary_script(page: str) -> str:
    """The JavaScript module with every term of the page `docs/glossary.md` and its meaning, as plain text."""
    meanings = {
        term: re.sub(r"\*\*|`", "", meaning)
        for terms, meaning in _ROW.findall(page)
        for term in re.sub(r" \(.*\)", "", terms).split(", ")
    }
    entries = json.dumps(meanings, indent=2, ensure_ascii=False)
    return f"// Written by tools.pages from docs/glossary.md.\n\nexport const GLOSSARY = {entries};\n"
