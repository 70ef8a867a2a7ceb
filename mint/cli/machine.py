"""The commands about this machine and its settings."""

import os
from dataclasses import asdict
from importlib.metadata import entry_points
from typing import Annotated

from mint.cli.options import argument
from mint.cli.settings import VARIABLES, settings_file
from mint.cli.terminal.screen import Record, Screen


def doctor(
    screen: Screen,
    head: Annotated[str, argument("[[tls://]HOST[:PORT]]", "Also check that this cluster accepts this machine.")] = "",
) -> Record:
    """Check this machine for known problems and name the cures, for a cluster too where Ray is installed.

    The report contains no secret. The exit code is 1 if a finding is bad.
    """
    screen.begin("doctor: imports MLX and checks this machine")
    from mint.run.checkup import GROUP, examine_machine, is_well

    findings = examine_machine()
    observed: Record = {}
    for point in entry_points(group=GROUP):
        more, machine = point.load()(head)
        known = {finding.check for finding in findings}
        findings += [finding for finding in more if finding.check not in known]
        observed |= machine
    checks = [asdict(finding) for finding in findings]
    if not screen.as_json:
        checks = [check if check["cure"] else {**check, "cure": "-"} for check in checks]
    record = {"checks": checks, "passed": is_well(findings)}
    return record | ({"machine": observed} if screen.as_json else {})


def config(screen: Screen) -> Record:
    """Show the settings: the variables MINT_*, and mint.toml with the defaults of options."""
    rows = [
        {"variable": v.name, "value": _shown(v.name) or v.default, "set": v.name in os.environ, "meaning": v.meaning}
        for v in VARIABLES
    ]
    file = settings_file()
    return {"variables": rows, "file": str(file), "exists": file.is_file()}


def _shown(name: str) -> str:
    """The value of a variable; that of a secret stays hidden."""
    value = os.environ.get(name, "")
    return "(set)" if value and name in ("MINT_TOKEN", "MINT_DATABASE") else value
