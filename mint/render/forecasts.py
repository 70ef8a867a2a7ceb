"""A forecast in lines; apart from other summaries, since it imports what measures and commands that plan do not."""

from mint.core.sizes import format_size
from mint.forecast.forecast import Forecast, spoken
from mint.render.summary import Line


def forecast_summary(forecast: Forecast) -> list[Line]:
    """The lines for a forecast."""
    steps = [f"{step.name} {spoken(step.seconds)}" for step in forecast.steps]
    memory = Line(
        "memory",
        f"up to {format_size(forecast.peak_bytes)} of {format_size(forecast.machine_bytes)}",
        is_warning=forecast.peak_bytes > forecast.machine_bytes,
    )
    return [
        Line("time", f"about {spoken(forecast.seconds)}: {', '.join(steps)}"),
        memory,
        Line("disk", format_size(forecast.disk_bytes)),
    ]
