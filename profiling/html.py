"""A profile as one page for people: HTML with its style and charts inside, no script, nothing loaded from elsewhere."""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from vlm_trt.profiling import sections
from vlm_trt.profiling.markup import Html, joined, milliseconds, number, size, tag, words

Values = Mapping[str, Any]

# In the order of the page: the fragment of its address, its title, what writes it.
_SECTIONS: tuple[tuple[str, str, sections.Section], ...] = (
    ("timeline", "Timeline", sections.timeline),
    ("stages", "Stages", sections.waterfall),
    ("latencies", "Latencies", sections.latencies),
    ("sweep", "Sweep", sections.sweep),
    ("decode", "Decode steps", sections.decode),
    ("roofline", "Roofline", sections.roofline),
    ("layers", "Layers", sections.layers),
    ("comparison", "Comparison", sections.comparison),
    ("numbers", "All numbers", sections.numbers),
)
# A browser that heeds it loads nothing and runs nothing, whatever a name in the profile says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_NAMES = {
    "date": "date",
    "processor": "processor",
    "gpu": "GPU",
    "cores": "cores",
    "memory_gib": "memory",
    "clock_mhz": "clock before",
    "gpu_clock": "GPU clock before",
    "clocks_after": "clocks after",
    "load_average": "load before",
    "load_average_after": "load after",
}
_UNITS = {"memory_gib": " GiB", "clock_mhz": " MHz"}
_BUSY = 0.5  # load per core before anything was measured


def report(document: Values) -> str:
    """The page.

    Args:
        document: a profile as plain JSON values, of one or more points (`profiling.document.document`).
    """
    written = {(key, title): inner for key, title, section in _SECTIONS if (inner := section(document)) is not None}
    links = [tag("a", title, href=f"#{key}") for key, title in written]
    body = [
        _header(document),
        tag("nav", *links, aria_label="Sections"),
        tag(
            "main",
            *(tag("section", tag("h2", title), inner, id=key) for (key, title), inner in written.items()),
        ),
        tag("footer", f"vlm-trt {document['version']}, profile schema {document['schema']}"),
    ]
    style = files("vlm_trt.profiling").joinpath("report.css").read_text(encoding="utf-8")
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="color-scheme" content="light dark">\n'
    )
    title = tag("title", f"Profile of {document['setup']['bundle']}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}{title}\n<style>\n{style}</style>\n</head>\n'
        f"<body>\n{joined(body)}\n</body>\n</html>\n"
    )


def _header(found: Values) -> Html:
    setup, point = found["setup"], found["points"][0]
    name = setup["bundle"].rstrip("/").rpartition("/")[2] or setup["bundle"]
    verified = tag("span", "verified", class_="badge good")
    if not setup["verified"]:
        verified = tag("span", "not verified", class_="badge bad")
    said = tag("p", f"{setup['precision']} on {setup['backend']} ", verified, class_="subtitle")
    tiles = [
        tag("div", tag("dt", name), tag("dd", value, tag("small", unit)))
        for name, value, unit in _headlines(point["metrics"])
    ]
    return tag(
        "header",
        tag("h1", tag("small", "Profile of "), name),
        said,
        tag("p", f"The first point, {point['label']}:", class_="how"),
        tag("dl", *tiles, class_="tiles"),
        *_busy(found["environment"]),
        tag("div", _facts("Bundle", _bundle(found)), _facts("Machine", _machine(found)), class_="side-by-side"),
    )


def _headlines(metrics: Values) -> Iterator[tuple[str, str, str]]:
    for metric, field, name in (
        ("time_to_first_token", "p50", "time to first token, p50"),
        ("inter_token_latency", "p50", "inter-token latency, p50"),
        ("output_token_throughput", "avg", "output tokens"),
        ("request_latency", "p50", "request latency, p50"),
        ("request_latency", "p99", "request latency, p99"),
    ):
        if metric in metrics:
            unit = metrics[metric]["unit"].replace("tokens/sec", "/ s")
            yield name, number(metrics[metric][field]), f" {unit}"


def _busy(environment: Values) -> Iterator[Html]:
    """A warning where other work ran beside the measurement."""
    load, cores = environment.get("load_average"), environment.get("cores")
    if load is not None and cores and load > _BUSY * cores:
        text = f"The machine was busy before this profile began: a load of {load:.1f} on {cores} cores. Expect noise."
        yield tag("p", text, class_="warning")


def _facts(caption: str, facts: Mapping[str, object]) -> Html:
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items() if value is not None]
    return tag("div", tag("h2", caption), tag("dl", *rows), class_="facts")


def _bundle(found: Values) -> dict[str, object]:
    setup = found["setup"]
    device = found["device_bytes"]
    return {
        "folder": setup["bundle"],
        "family": setup["family"],
        "precision": setup["precision"],
        "backend": setup["backend"],
        "threads": setup.get("threads"),
        "verified": "yes" if setup["verified"] else "no",
        "graphs": joined(tag("div", _identity(one)) for one in setup["graphs"]),
        "load": milliseconds(found["load_ms"]),
        "peak memory": size(found["peak_rss_bytes"]),
        "device memory": None if device is None else size(device),
    }


def _identity(graph: str) -> str:
    """Component, and the first digits of its hashes."""
    component, *hashes = graph.split(":")
    return " ".join([words(component), *(one[:8] for one in hashes)])


def _machine(found: Values) -> dict[str, object]:
    """All that is known of it, the packages last."""
    environment = dict(found["environment"])
    packages = environment.pop("packages", None) or {}
    facts = {_NAMES.get(name, words(name)): _fact(name, environment[name]) for name in _in_order(environment)}
    return facts | {"packages": ", ".join(f"{name} {version}" for name, version in packages.items()) or None}


def _in_order(environment: Values) -> list[str]:
    """What was noted after the measurement beside what was noted before it."""
    first = [name for name in _NAMES if name in environment]
    return [*first, *(name for name in environment if name not in first)]


def _fact(name: str, value: object) -> object:
    if isinstance(value, Mapping):
        return ", ".join(str(_fact(key, one)) for key, one in value.items() if one is not None) or None
    if name == "date":
        return str(value).replace("T", " ").replace("+00:00", " UTC")
    written = number(value) if isinstance(value, float) else value
    return None if written is None else f"{written}{_UNITS.get(name, '')}"
