"""The charts of a report as Vega-Lite specifications: https://vega.github.io/vega-lite/docs/."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import log10
from statistics import median
from typing import Any

from mint.analysis.analysis import sqnr_db
from mint.formats.format import Format
from mint.plan.curve import Point
from mint.plan.plan import UNIFORM, Choice, Plan, converted_plans
from mint.render.report.subjects import AnalyzedModel, PlannedModel

Spec = dict[str, Any]
Rows = list[dict[str, Any]]
# text and lines take the colour of the page, which has a light, a dark and a printed form
_PLAIN = {"labelColor": "currentColor", "titleColor": "currentColor"}
_CONFIG = {
    "background": "transparent",
    "axis": {
        **_PLAIN,
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridColor": "#888888",
        "gridOpacity": 0.25,
    },
    "legend": {**_PLAIN, "symbolLimit": 60, "labelLimit": 0},
    "header": _PLAIN,
    "text": {"color": "currentColor"},
    "view": {"stroke": "transparent"},
}


_CLOSE = 0.08  # of the width and of the height of all points: names would overlap
_UNIFORM_KIND = "uniform, nearest (mlx_lm.convert)"
_SIDES = (("left", 7, -7), ("right", -7, 9), ("left", 7, 9), ("right", -7, -7))  # alignment and distance of a name


def _chart(height: int, **spec: Any) -> Spec:
    return {"width": "container", "height": height, "config": _CONFIG, "autosize": {"type": "fit-x"}, **spec}


def _axis(field: str, title: str, *, kind: str = "quantitative", **more: Any) -> Spec:
    return {"field": field, "type": kind, "title": title, **more}


def _size_axis() -> Spec:
    """Bytes with ticks in MB, or in GB from one on."""
    ticks = "datum.value >= 1e9 ? format(datum.value / 1e9, '~g') + ' GB' : format(datum.value / 1e6, '~g') + ' MB'"
    return _axis("nbytes", "weight files", scale={"zero": False}, axis={"labelExpr": ticks})


def curve_chart(model: AnalyzedModel, planned: Sequence[PlannedModel]) -> Spec:
    """Loss over size: the best plans as a line, and devices, uniform formats and the given plans as points.

    Losses of different roundings are not alike, so every kind names its rounding. A uniform format is that of
    `mlx_lm.convert`, which rounds to nearest.
    """
    title = "predicted KL, nats per token" if model.best.objective.probes else "loss"
    x, y = _size_axis(), _axis("loss", title, scale={"type": "log"})
    tooltip = _tooltip(name="name", nbytes="bytes", loss=title, bits="bits per weight")
    best = f"best plans, {model.analysis.rounding}"
    line = [
        {"kind": best, "nbytes": point.planned_bytes, "loss": _height(point), "bits": round(point.bits_per_weight, 3)}
        for point in model.curve.points
        if _height(point) > 0
    ]
    plain = converted_plans(model.best).items()
    points = [
        *_points(f"knee, {model.analysis.rounding}", [("knee", *_figures(point)) for point in model.curve.knees]),
        *_points(f"device, {model.analysis.rounding}", _device_points(model)),
        *_points(_UNIFORM_KIND, [(f"uniform {name}", *_figures(plan)) for name, plan in plain]),
    ]
    for p in planned:
        points += _points(f"plan, {p.plan.rounding}", [(p.name, *_figures(p.plan))])
    below = {"orient": "bottom", "columns": 2}
    # both scales have all kinds as their domain: Vega-Lite then draws one legend, and not one for each
    kinds = list(dict.fromkeys(row["kind"] for row in [*line, *points]))
    by_kind = _axis("kind", "", kind="nominal", legend=below, scale={"domain": kinds})
    color = {"color": by_kind}
    shape = {**color, "shape": by_kind}
    named = [point for point in points if point["kind"].startswith(("uniform", "plan"))]
    return _chart(
        360,
        layer=[
            {"data": {"values": line}, "mark": {"type": "line"}, "encoding": {"x": x, "y": y, **color}},
            {
                "data": {"values": points},
                "mark": {"type": "point", "filled": True, "size": 70},
                "encoding": {"x": x, "y": y, **shape, "tooltip": tooltip},
            },
            *_labels(_joined(named), x, y),
        ],
    )


def _joined(points: Rows) -> Rows:
    """The points to name: those too close for names of their own share the name of all of them."""
    if not points:
        return []
    sizes, heights = [point["nbytes"] for point in points], [log10(point["loss"]) for point in points]
    width = _CLOSE * (max(sizes) - min(sizes))
    height = _CLOSE * (max(heights) - min(heights))
    joined: Rows = []
    for point in sorted(points, key=lambda point: point["nbytes"]):
        name = point["name"].removeprefix("uniform ")
        near = [
            other for other in joined
            if abs(other["nbytes"] - point["nbytes"]) <= width
            and abs(log10(other["loss"]) - log10(point["loss"])) <= height
        ]  # fmt: skip
        if near:
            near[0]["name"] += f", {name}"
        else:
            joined.append({**point, "name": name})
    return joined


def _labels(points: Rows, x: Spec, y: Spec) -> list[Spec]:
    """Layers of names, each at another side of its points: neighbours do not write over each other."""
    ordered = sorted(points, key=lambda point: point["nbytes"])
    return [
        {
            "data": {"values": ordered[side :: len(_SIDES)]},
            "mark": {"type": "text", "align": align, "dx": dx, "dy": dy, "fontSize": 10},
            "encoding": {"x": x, "y": y, "text": {"field": "name"}},
        }
        for side, (align, dx, dy) in enumerate(_SIDES)
    ]


def _tooltip(**titles: str) -> list[Spec]:
    """The fields that a point shows, with their titles."""
    return [{"field": field, "title": title} for field, title in titles.items()]


def _height(point: Any) -> float:
    """The predicted KL of a plan or point, or its loss where nothing is predicted."""
    return float(point.predicted_kl.value if point.predicted_kl else point.loss)


def _figures(plan: Plan | Point) -> tuple[int, float, float]:
    return plan.planned_bytes, _height(plan), plan.bits_per_weight


def _points(kind: str, rows: Sequence[tuple[str, int, float, float]]) -> Rows:
    """The points of one kind; a logarithmic scale has no place for a loss of 0."""
    return [
        {"kind": kind, "name": name, "nbytes": nbytes, "loss": loss, "bits": round(bits, 3)}
        for name, nbytes, loss, bits in rows
        if loss > 0
    ]


def _device_points(model: AnalyzedModel) -> list[tuple[str, int, float, float]]:
    """Devices whose memory limits the plan, on the curve; those with the same budget share a point."""
    names: dict[int, list[str]] = defaultdict(list)
    for placed in model.devices:
        if placed.verdict == "fits" and placed.budget_bytes is not None:
            names[placed.budget_bytes].append(placed.device.name)
    points = model.curve.points
    nearest = {nbytes: min(points, key=lambda point: abs(point.planned_bytes - nbytes)) for nbytes in names}
    return [
        (", ".join(names[nbytes]), nbytes, _height(point), point.bits_per_weight) for nbytes, point in nearest.items()
    ]


def bits_chart(model: PlannedModel) -> Spec:
    """Bits of every role in every layer; units outside of the layers come first."""
    rows = [
        {
            "layer": _layer_of(choice),
            "role": choice.role,
            "bits": round(8 * model.plan.nbytes_of(choice) / max(choice.weights, 1), 2),
            "format": str(choice.format),
            "unit": choice.path,
        }
        for choice in sorted(model.plan.choices, key=lambda choice: choice.layer)
    ]
    roles = len({row["role"] for row in rows})
    encoding = {
        "x": _layer_axis(),
        "y": _axis("role", "", kind="nominal", sort=None),
        "color": _axis("bits", "bits", aggregate="mean", scale={"scheme": "viridis", "domain": [2, 8], "clamp": True}),
        "tooltip": [{"field": name} for name in ("unit", "format", "bits")],
    }
    return _chart(24 * roles + 20, data={"values": rows}, mark={"type": "rect"}, encoding=encoding)


def _layer_of(choice: Choice) -> str | int:
    return "outside" if choice.layer < 0 else choice.layer


def _layer_axis() -> Spec:
    """A place for every layer, after the one for units outside of them."""
    return _axis("layer", "layer", kind="ordinal", sort=None, axis={"labelOverlap": True, "labelAngle": 0})


def rate_chart(measurements: Mapping[str, Sequence[tuple[float, float, str]]]) -> Spec:
    """Median signal-to-noise ratio over bits, a line for every role; rows (bits, dB, format) by role."""
    rows = [
        {"role": role, "bits": bits, "sqnr": round(decibels, 2), "format": format}
        for role, points in measurements.items()
        for bits, decibels, format in points
    ]
    encoding = {
        "x": _axis("bits", "bits per weight", scale={"zero": False}),
        "y": _axis("sqnr", "signal to quantization noise, dB", scale={"zero": False}),
        "color": _axis("role", "", kind="nominal"),
        "tooltip": _tooltip(role="role", format="format", bits="bits per weight", sqnr="SQNR, dB"),
    }
    return _chart(300, data={"values": rows}, mark={"type": "line", "point": True}, encoding=encoding)


def rates_of(plan: Plan) -> dict[str, list[tuple[float, float, str]]]:
    """Bits and median ratio of every affine format of group size 64, by role."""
    errors: dict[str, dict[Format, list[float]]] = defaultdict(lambda: defaultdict(list))
    for choice in plan.choices:
        for format, error in zip(choice.formats, choice.errors, strict=True):
            if format in UNIFORM and format.scheme.is_default and error > 0:
                errors[choice.role][format].append(error)
    return {role: sorted(_rate(*item) for item in measured.items()) for role, measured in errors.items()}


def _rate(format: Format, errors: Sequence[float]) -> tuple[float, float, str]:
    """Bits per weight, with scale and bias of 16 bits for every group, and the ratio of the median error."""
    return format.bits + 32 / format.group_size, sqnr_db(median(errors)), str(format)


def alpha_chart(plan: Plan) -> Spec:
    """The sensitivity of every unit, by layer."""
    rows = [
        {"layer": _layer_of(choice), "role": choice.role, "alpha": choice.alpha, "unit": choice.path}
        | {"from": choice.alpha_from}
        for choice in sorted(plan.choices, key=lambda choice: choice.layer)
        if choice.alpha > 0
    ]
    encoding = {
        "x": _layer_axis(),
        "y": _axis("alpha", "sensitivity: KL per squared NRMSE", scale={"type": "log"}),
        "color": _axis("role", "", kind="nominal"),
        "tooltip": _tooltip(unit="unit", alpha="sensitivity", **{"from": "from"}),
    }
    return _chart(300, data={"values": rows}, mark={"type": "point", "filled": True, "size": 40}, encoding=encoding)


def closeness_chart(planned: Sequence[PlannedModel]) -> Spec:
    """The measured KL of written models with its interval, over their size."""
    rows = [
        {"name": model.name, "nbytes": model.plan.planned_bytes, **model.closeness["kl"]}
        for model in planned
        if model.closeness
    ]
    x = _size_axis()
    tooltip = _tooltip(name="name", nbytes="bytes", value="KL", low="KL from", high="KL to")
    title = "measured KL, nats per token"
    return _chart(
        240,
        data={"values": rows},
        layer=[
            {"mark": "rule", "encoding": {"x": x, "y": _axis("low", title), "y2": {"field": "high"}}},
            {
                "mark": {"type": "point", "filled": True, "size": 70},
                "encoding": {"x": x, "y": _axis("value", title), "tooltip": tooltip},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 7, "fontSize": 10},
                "encoding": {"x": x, "y": _axis("value", title), "text": {"field": "name"}},
            },
        ],
    )
