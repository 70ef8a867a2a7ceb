"""The rules of a plan: limits, the veto, locks, and their contradictions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mint.analysis.analysis import Measurement
from mint.core.errors import MintError
from mint.formats.format import AFFINE, FORMATS, KEEP, MXFP4, NVFP4, parse_format
from mint.formats.units import Unit
from mint.plan.rules import Allowance, Rules, matching, parse_formats, parse_lock, read_locks
from mint.targets.loaders import compatible_formats

FORMAT = {str(format): format for format in FORMATS}
MEASURED = tuple(format for format in FORMATS if format != KEEP)


UNIT = Unit("model.layers.0.mlp.up_proj", (64, 128), "BF16", "up", 0, ())


def _unit(**fields: Any) -> Unit:
    return replace(UNIT, **fields)


def _measurement(unit: Unit) -> Measurement:
    errors = tuple(4.0**-format.bits for format in MEASURED)  # about 6 dB a bit
    return Measurement(unit.path, MEASURED, errors, errors, 1.0)


def _allowed(rules: Rules, unit: Unit | None = None) -> tuple[set[str], str]:
    unit = unit or _unit()
    allowed = Allowance(rules, [unit], MEASURED).of(unit, _measurement(unit))
    return set(map(str, allowed.formats)), allowed.reason


def test_without_rules_only_the_veto_takes_formats() -> None:
    formats, reason = _allowed(Rules(veto_db=20.0))
    assert formats == {str(format) for format in FORMATS if format == KEEP or format.bits >= 4}
    assert reason == "least loss; 6 formats below 20 dB"


def test_limits_of_bits_apply_and_below_sixteen_a_unit_is_not_kept() -> None:
    formats, _ = _allowed(Rules(veto_db=-9, min_bits=3, max_bits=5))
    assert {FORMAT[name].bits for name in formats} == {3, 4, 5}
    formats, _ = _allowed(Rules(veto_db=-9, max_bits=16))
    assert "keep" in formats


def test_the_models_floor_applies_beside_the_rules() -> None:
    formats, reason = _allowed(Rules(veto_db=-9, min_bits=3), _unit(min_bits=8))
    assert {FORMAT[name].bits for name in formats - {"keep"}} == {8}
    assert "at least 8 bits" in reason


def test_the_floor_of_a_role_applies_until_the_unit_is_measured() -> None:
    unit = _unit(role="index", path="model.layers.0.self_attn.indexer.wq_b")
    formats, reason = _allowed(Rules(veto_db=-9), unit)
    assert min(FORMAT[name].bits for name in formats - {"keep"}) == 6
    assert "at least 6 bits (unprobed index)" in reason
    measured = Allowance(Rules(veto_db=-9), [unit], MEASURED, {unit.path}).of(unit, _measurement(unit))
    waived, _ = _allowed(Rules(veto_db=-9, ignored_floors=("*.wq_b",)), unit)
    assert set(map(str, measured.formats)) == waived > formats
    assert _allowed(Rules(locks=(("*.wq_b", FORMAT["3/64"]),)), unit)[0] == {"3/64"}


def test_formats_are_written_as_bits_at_groups_or_by_name() -> None:
    assert parse_formats(["3,4@64,128"]) == tuple(map(parse_format, ("3/64", "3/128", "4/64", "4/128")))
    assert parse_formats(["mxfp4,8/32", "2"]) == tuple(map(parse_format, ("2/32", "2/64", "2/128", "8/32", "mxfp4")))
    assert parse_formats(["8@32,64,32,64"]) == tuple(map(parse_format, ("8/32", "8/64"))), "a repeated group is one"
    assert parse_formats([]) == ()


@pytest.mark.parametrize("term", ["7@64", "4@48", "mxfp4@32", "4/63", "3,4@64,65"])
def test_formats_that_mlx_does_not_have_are_refused(term: str) -> None:
    with pytest.raises(MintError, match=r"no such formats|is not a format|is not a number of bits"):
        parse_formats([term])


def test_rules_that_leave_no_format_are_refused() -> None:
    with pytest.raises(MintError, match="no format has from 7 to 7 bits"):
        _allowed(Rules(min_bits=7, max_bits=7))


def test_a_lock_overrides_the_veto() -> None:
    formats, reason = _allowed(Rules(veto_db=100.0, locks=(("*.up_proj", FORMAT["2/64"]),)))
    assert formats == {"2/64"}
    assert reason == "set to 2/64 by *.up_proj"
    assert _allowed(Rules(locks=(("*", KEEP),))) == ({"keep"}, "kept: asked for by *")


def test_a_pattern_that_matches_nothing_is_refused_with_an_example() -> None:
    with pytest.raises(MintError, match=r"'\*\.v_proj' matches no unit.*model\.layers\.0\.mlp\.up_proj"):
        _allowed(Rules(locks=(("*.v_proj", KEEP),)))


def test_locks_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(MintError, match=r"set to 4/64 by \*up_proj and to 8/64 by \*layers\.0\*"):
        _allowed(Rules(locks=(("*up_proj", FORMAT["4/64"]), ("*layers.0*", FORMAT["8/64"]))))
    same = (("*up_proj", FORMAT["4/64"]), ("*layers.0*", FORMAT["4/64"]))
    assert _allowed(Rules(locks=same))[0] == {"4/64"}


@pytest.mark.parametrize(
    ("unit", "format", "complaint"),
    [
        (_unit(min_bits=8), "4/64", "the model itself asks for at least 8 bits"),
        (_unit(keep_reason="no rule knows this module"), "4/64", "must be kept"),
        (_unit(shape=(64, 96)), "4/64", "does not divide its last axis of 96"),
    ],
)
def test_an_impossible_lock_is_refused(unit: Unit, format: str, complaint: str) -> None:
    with pytest.raises(MintError, match=complaint):
        _allowed(Rules(locks=(("*", FORMAT[format]),)), unit)


def test_a_unit_that_no_permitted_format_fits_is_kept_with_that_reason() -> None:
    unit = _unit(min_bits=8)
    assert _allowed(Rules(formats=(FORMAT["4/64"],)), unit) == (
        {"keep"},
        "kept: none of the formats that the rules leave fits it in 8 bits or more",
    )


def test_locks_are_read_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "locks.json").write_text(json.dumps({"lm_head": "8/64", "*.v_proj": "keep"}))
    assert read_locks(tmp_path / "locks.json") == ("lm_head=8/64", "*.v_proj=keep")
    assert parse_lock("*.down_proj=mxfp4") == ("*.down_proj", MXFP4)
    for broken in ("[]", "{", '{"a": 3}'):
        (tmp_path / "locks.json").write_text(broken)
        with pytest.raises(MintError, match="needed JSON like"):
            read_locks(tmp_path / "locks.json")
    with pytest.raises(MintError, match="needed JSON like"):
        read_locks(tmp_path / "none.json")
    with pytest.raises(MintError, match="needed PATTERN=FORMAT"):
        parse_lock("*.down_proj")


def test_patterns_match_whole_paths() -> None:
    paths = ["a.b", "a.b.c", "x.b"]
    assert matching("a.*", paths) == ["a.b", "a.b.c"]
    assert matching("*.b", paths) == ["a.b", "x.b"]
    with pytest.raises(MintError, match="matches no unit"):
        matching("b", paths)


def test_rules_read_back_as_they_were_written() -> None:
    rules = Rules(7.5, 3, 6, (AFFINE[4], NVFP4), (("*.q_proj", KEEP),))
    assert Rules.from_dict(json.loads(json.dumps(rules.to_dict()))) == rules


def test_formats_newer_than_a_loader_are_incompatible_with_it() -> None:
    assert NVFP4 not in compatible_formats("mlx-0.29.0")
    assert {format.bits for format in compatible_formats("mlx-0.21.1")} == {0, 2, 3, 4, 6, 8}
