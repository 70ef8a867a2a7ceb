"""A curve as a picture or a table of numbers in a file."""

import csv
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from mint.core.errors import MintError
from mint.plan.curve import Curve, Point
from mint.plan.device_fit import Placed

_PICTURES = (".png", ".svg", ".pdf")
_PREDICTED = ("predicted_kl", "predicted_low", "predicted_high")
_MOST_DEVICES = 12  # names beyond these would overlap


def write_csv(curve: Curve, path: Path) -> None:
    """Write every point of the curve, one a line, under a line of names."""
    with path.open("x", newline="") as file:
        writer = csv.writer(file)
        names = ["budget_bytes", "planned_bytes", "bits_per_weight", "loss", "gap", "knee"]
        writer.writerow([*names, *_PREDICTED] if curve.points[0].predicted_kl else names)
        for p in curve.points:
            row = [p.budget_bytes, p.planned_bytes, p.bits_per_weight, p.loss, p.gap, int(p in curve.knees)]
            writer.writerow([*row, *astuple(p.predicted_kl)] if p.predicted_kl else row)


def draw_curve(curve: Curve, devices: Sequence[Placed], path: Path, *, title: str) -> None:
    """Draw loss over budget, with the knees and the devices that lie on the curve; `MintError` for no known picture."""
    if path.suffix not in _PICTURES:
        raise MintError(f"{path}: found no kind of picture, needed a name that ends in {', '.join(_PICTURES)}")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    unit, scale = ("GB", 1e9) if curve.points[-1].budget_bytes >= 10**9 else ("MB", 1e6)
    shown = [point for point in curve.points if _height(point) > 0]  # the scale is logarithmic
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    axes.plot([p.budget_bytes / scale for p in shown], [_height(p) for p in shown], color="#2a6f97", label="best plan")
    axes.plot(
        [p.budget_bytes / scale for p in curve.knees],
        [_height(p) for p in curve.knees],
        "o",
        color="#c1121f",
        label="knee",
    )
    bands = [(p.budget_bytes / scale, p.predicted_kl) for p in shown if p.predicted_kl]
    if bands:
        ends = [kl.low for _, kl in bands], [kl.high for _, kl in bands]
        axes.fill_between([place for place, _ in bands], *ends, color="#2a6f97", alpha=0.15, label="95 % interval")
    # devices with one budget share a line
    names: dict[int, list[str]] = {}
    for each in devices:
        if each.verdict == "fits" and each.budget_bytes is not None:
            names.setdefault(each.budget_bytes, []).append(each.device.name)
    for budget in sorted(names)[:_MOST_DEVICES]:
        axes.axvline(budget / scale, color="0.8", linewidth=0.8, zorder=0)
        more = f" +{len(names[budget]) - 1}" if len(names[budget]) > 1 else ""
        place = (budget / scale, 0.99)
        axes.annotate(names[budget][0] + more, place, xycoords=("data", "axes fraction"), rotation=90, va="top",
                      ha="right", fontsize=7, color="0.4")  # fmt: skip
    height = "predicted KL, nats per token" if bands else "predicted loss"
    axes.set(yscale="log", xlabel=f"weight files, {unit}", ylabel=height, title=title)
    axes.grid(True, which="major", color="0.93")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _height(point: Point) -> float:
    """What is drawn of a point: the KL divergence where there is a prediction, which no wish for speed is added to."""
    return point.predicted_kl.value if point.predicted_kl else point.loss
