"""Writes a curve as a picture or as a table of numbers."""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from mint.core.errors import MintError
from mint.core.records import pick
from mint.plan.curve import Curve, Point
from mint.plan.device_fit import Placed

_PICTURES = (".png", ".svg", ".pdf")
_COLUMNS = "budget_bytes planned_bytes bits_per_weight loss gap"
_PREDICTED = ("predicted_kl", "predicted_low", "predicted_high")
_WITHOUT_DATE = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_MAX_DEVICES = 12  # more names would overlap


def curve_table(curve: Curve) -> bytes:
    """The CSV text of every point of the curve, one a line, under a line of names."""
    text = io.StringIO()
    writer = csv.writer(text)
    predicted = _PREDICTED if curve.points[0].predicted_kl else ()
    writer.writerow([*_COLUMNS.split(), "knee", *predicted])
    for point in curve.points:
        kl = astuple(point.predicted_kl) if point.predicted_kl else ()
        writer.writerow([*pick(point, _COLUMNS).values(), int(point in curve.knees), *kl])
    return text.getvalue().encode()


def require_picture(path: Path) -> None:
    """Raise `MintError` for the name of an unknown kind of picture."""
    if path.suffix not in _PICTURES:
        raise MintError(f"{path}: found no kind of picture, needed a name that ends in {', '.join(_PICTURES)}")


def drawn_curve(curve: Curve, devices: Sequence[Placed], kind: str, *, title: str) -> bytes:
    """A picture of loss over budget, with the knees and the devices on the curve; the same bytes each time."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "mint"
    from matplotlib import pyplot

    unit, scale = ("GB", 1e9) if curve.points[-1].budget_bytes >= 10**9 else ("MB", 1e6)

    def coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
        return [point.budget_bytes / scale for point in points], [_height(point) for point in points]

    points = [point for point in curve.points if _height(point) > 0]  # the scale is logarithmic
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    axes.plot(*coordinates(points), color="#2a6f97", label="best plan")
    axes.plot(*coordinates(curve.knees), "o", color="#c1121f", label="knee")
    bands = [(p.budget_bytes / scale, p.predicted_kl.low, p.predicted_kl.high) for p in points if p.predicted_kl]
    if bands:
        axes.fill_between(*zip(*bands, strict=True), color="#2a6f97", alpha=0.15, label="95 % interval")
    names: dict[int, list[str]] = {}  # devices with the same budget share a line
    for placed in devices:
        if placed.verdict == "fits" and placed.budget_bytes is not None:
            names.setdefault(placed.budget_bytes, []).append(placed.device.name)
    for budget in sorted(names)[:_MAX_DEVICES]:
        axes.axvline(budget / scale, color="0.8", linewidth=0.8, zorder=0)
        more = f" +{len(names[budget]) - 1}" if len(names[budget]) > 1 else ""
        top = (budget / scale, 0.99)
        axes.annotate(names[budget][0] + more, top, xycoords=("data", "axes fraction"), rotation=90, va="top",
                      ha="right", fontsize=7, color="0.4")  # fmt: skip
    height = "predicted KL, nats per token" if bands else "predicted loss"
    axes.set(yscale="log", xlabel=f"weight files, {unit}", ylabel=height, title=title)
    axes.grid(True, which="major", color="0.93")
    axes.legend(loc="lower left")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=kind.removeprefix("."), metadata=_WITHOUT_DATE.get(kind))
    pyplot.close(figure)
    return picture.getvalue()


def _height(point: Point) -> float:
    """The predicted KL divergence, which has no charge for speed; the loss where there is no prediction."""
    return point.predicted_kl.value if point.predicted_kl else point.loss
