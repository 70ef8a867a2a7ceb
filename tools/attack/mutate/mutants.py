"""The mutants of a Python file: copies of its syntax tree with one small change each.

Not changed: docstrings, annotations, decorators, imports, aliases of types, and the words of errors that are raised.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
_OPERATIONS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitOr,
}  # fmt: skip
_NAMES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "minimum": "maximum",
    "maximum": "minimum", "argmin": "argmax", "startswith": "endswith",
}  # fmt: skip
_SIDES = {"left": "right", "right": "left"}  # of searches in sorted arrays
_UNCHANGED_FIELDS = ("annotation", "returns", "decorator_list", "bases", "type_params")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: its lines (of the statement) and scope, its words, and the numbers that find it again in the tree."""

    lines: range
    scope: str
    change: str
    node: int
    choice: int
    is_cached: bool  # within a function whose results are kept, so that its lines are run for some tests only

    @property
    def name(self) -> str:
        """The mutant's name, which does not depend on other lines."""
        return f"{self.scope}: {self.change}"


@dataclass(frozen=True, slots=True)
class _Site:
    """A node that may change, and the position that it has in its parent."""

    node: ast.AST
    scope: str
    parent: ast.AST
    field: str
    index: int  # in a list; -1 outside of one
    statement: ast.stmt
    is_message: bool
    is_cached: bool

    def replace(self, node: ast.AST) -> None:
        if self.index < 0:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a file, in the order of its nodes; equal changes of a scope are numbered."""
    mutants: list[Mutant] = []
    times: Counter[str] = Counter()
    for number, site in enumerate(_sites(ast.parse(source))):
        for choice, node in enumerate(_replacements(site)):
            change = f"{_words(site.node)} -> {_words(node)}"
            times[f"{site.scope}: {change}"] += 1
            if (time := times[f"{site.scope}: {change}"]) > 1:
                change += f" #{time}"
            mutants.append(Mutant(_lines(site.statement), site.scope, change, number, choice, site.is_cached))
    return mutants


def code_of(source: str, path: str, mutant: Mutant) -> CodeType:
    """The compiled code of a file with the change of a mutant."""
    tree = ast.parse(source)
    site = next(site for number, site in enumerate(_sites(tree)) if number == mutant.node)
    node = next(node for choice, node in enumerate(_replacements(site)) if choice == mutant.choice)
    site.replace(ast.copy_location(node, site.node))
    return compile(ast.fix_missing_locations(tree), path, "exec")


def _words(node: ast.AST) -> str:
    text = ast.unparse(node).strip().split("\n")[0]
    return text if len(text) < 100 else f"{text[:96]} ..."


def _lines(statement: ast.stmt) -> range:
    """The lines of a statement, without those of its body."""
    body = getattr(statement, "body", [])
    end = body[0].lineno if body else (statement.end_lineno or 0) + 1
    return range(statement.lineno, max(end, statement.lineno + 1))


def _sites(
    parent: ast.AST,
    scope: str = "module",
    statement: ast.stmt | None = None,
    is_message: bool = False,
    is_cached: bool = False,
) -> Iterator[_Site]:
    for field, index, node in _children(parent):
        if _is_alias(parent, node):
            continue
        own = node if isinstance(node, ast.stmt) else statement
        if own:
            yield _Site(node, scope, parent, field, index, own, is_message, is_cached)
        inner, keeps = scope, is_cached
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            inner = node.name if scope == "module" else f"{scope}.{node.name}"
            keeps |= any("cache" in ast.unparse(decorator) for decorator in node.decorator_list)
        if not isinstance(node, ast.JoinedStr):
            yield from _sites(node, inner, own, is_message or isinstance(node, ast.Raise), keeps)


def _children(parent: ast.AST) -> Iterator[tuple[str, int, ast.AST]]:
    for field, value in ast.iter_fields(parent):
        if field in _UNCHANGED_FIELDS:
            continue
        if isinstance(value, ast.AST):
            yield field, -1, value
        elif isinstance(value, list):
            yield from ((field, index, node) for index, node in enumerate(value) if isinstance(node, ast.AST))


def _is_alias(parent: ast.AST, node: ast.AST) -> bool:
    """True for imports, docstrings, and aliases of types."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant()):
            return True
        case ast.Assign(_, ast.Subscript()):
            return isinstance(parent, ast.Module)
    return False


def _replacements(site: _Site) -> Iterator[ast.AST]:
    """The nodes that may stand in the place of a node."""
    node: Any = site.node
    match node:
        case ast.Compare(left, [operator, *more], values):
            for other in _COMPARISONS[type(operator)]:
                yield ast.Compare(left, [other(), *more], values)
            for index, later in enumerate(more, 1):
                for other in _COMPARISONS[type(later)]:
                    yield ast.Compare(left, [*node.ops[:index], other(), *node.ops[index + 1 :]], values)
        case ast.BinOp(left, operator, right) if type(operator) in _OPERATIONS:
            yield ast.BinOp(left, _OPERATIONS[type(operator)](), right)
        case ast.AugAssign(target, operator, value):
            yield ast.AugAssign(target, _OPERATIONS[type(operator)](), value)
            yield ast.Pass()
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Constant(value):
            if not site.is_message and (changed := _changed(value)) is not None:
                yield ast.Constant(changed)
        case ast.JoinedStr(values):
            if not site.is_message:
                yield ast.JoinedStr([ast.Constant("XX"), *values])
        case ast.Name(name, ast.Load()) if name in _NAMES and _is_called(site):
            yield ast.Name(_NAMES[name], ast.Load())
        case ast.Attribute(value, name, ast.Load()) if name in _NAMES and _is_called(site):
            yield ast.Attribute(value, _NAMES[name], ast.Load())
        case ast.Return(ast.expr()) if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield ast.Return(ast.Constant(None))
        case ast.Raise() | ast.Expr(ast.Call()):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
    if _is_condition(site) and not isinstance(node, (ast.Compare, ast.UnaryOp)):
        yield ast.UnaryOp(ast.Not(), node)


def _is_called(site: _Site) -> bool:
    return isinstance(site.parent, ast.Call) and site.field == "func"


def _is_condition(site: _Site) -> bool:
    return site.field in ("test", "ifs") and isinstance(site.node, ast.expr)


def _changed(value: object) -> str | bytes | bool | int | float | None:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return _SIDES.get(value, f"XX{value}")
    return b"XX" + value if isinstance(value, bytes) else None
