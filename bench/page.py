"""Writes what the scripts found into `docs/performance.md` and the pictures beside it.

    python bench/page.py [--quick]

Reads what each script left in `bench/results` (those of quick runs with `--quick`, and then writes nothing but to
standard output). Only what stands between the marks `<!-- bench:NAME -->` and `<!-- /bench:NAME -->` is replaced. What
was not measured is said to be so; only the costs of a request stay as they are.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import charts
import flamegraph
from everything import SCRIPTS
from rig import LIMIT, RESULTS, ROOT, arguments

PAGE: Final = ROOT / "docs" / "performance.md"
IMAGES: Final = ROOT / "docs" / "img"

DOES: Final = {
    "bakerygw": "bakerygw, compiled: limit in Redis, flags, two log lines and metrics",
    "plain": "bakerygw, plain: the same, interpreted",
    "haproxy": "HAProxy{version}, one thread: limit in its own memory, no flags, no metrics, one log line",
    "aiohttp": "`aiohttp`, uvloop, redis-py, with the same policies",
    "seed": "FastAPI, HTTPX, redis-py, uvicorn, with the same policies",
}
MEASURES: Final = {
    "throughput_to_seed": "throughput, times FastAPI's",
    "throughput_to_aiohttp": "throughput, times `aiohttp`'s",
    "throughput_to_haproxy": "throughput, times HAProxy's",
    "p99_to_haproxy": "p99, times HAProxy's",
    "one_connection_added": "one connection: median added over asking the service directly",
    "idle_connection": "memory of an idle connection",
    "slow_reader_growth": "download by a client that stops reading: memory grows by",
    "upload_growth": "upload into a service that stops reading: memory grows by",
    "websocket_message": "WebSocket: processor time for each message that passes",
    "websocket_connection": "memory of an open WebSocket",
    "token_cache_hits": "tokens found in the cache of verified ones",
    "subscription_check": "check of a subscription: 999 of 1,000 within",
    "subscription_calls": "a token with its subscription: calls to the tenant service",
    "subscription_redis": "a token with its subscription: calls to Redis for each request",
    "stream_memory": "memory of an open stream of alerts, 10,000 of them",
    "fan_out_p99": "an alert to 1,000 streams while 9,000 idle: p99 until it is there",
    "delivery_to_nchan": "deliveries for the same time on the processor, times nginx with nchan's",
    "fan_out_beside_http": "requests at 30 % of capacity while 5 alerts a second go to 1,000 streams: p99 grows by",
    "soak_growth": "paced load: memory grows by",
}
"""Every promise, by the name its script prints, in the order of the table."""
UNMEASURED: Final = "**not measured**"
HEAD: Final = ("measure", "promise", "found", "kept")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells must hold no `|`. ValueError for rows of another length than the head's."""
    if any(len(row) != len(head) for row in rows) or any("|" in cell for row in [head, *rows] for cell in row):
        raise ValueError("a row does not fit")
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def replaced(page: str, name: str, text: str) -> str:
    """The page with `text` between the marks of `name`. ValueError unless they are there once, in order."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"{begin} … {end} must be there once")
    return f"{page[: page.index(begin)]}{begin}\n{text}\n{page[page.index(end) :]}"


def figure(value: float) -> str:
    """A number with as many digits as it is worth: 12,345, 123, 12.3, 1.23, 0.123."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def whereabouts(result: Mapping[str, Any]) -> str:
    """The machine of a run, in a sentence."""
    its = result["machine"]
    threads = ", the two used are threads of one core" if its["hyperthreads"] else ""
    return f"{its['date']}, {its['cpu']}, {its['cores']} cores{threads}, {its['system']}, Python {its['python']}"


def peers(result: Mapping[str, Any]) -> str:
    """The comparison: picture, table, and how it was made."""
    rows = []
    versions, used = result["versions"], result["options"]
    for name, row in result["systems"].items():
        version = f" {versions[name]}" if name in versions else ""
        ratio = ""
        if name != "bakerygw":
            ratio = f"{figure(row['ratio'])} × ({figure(row['ratio_low'])} to {figure(row['ratio_high'])})"  # noqa: RUF001
        latencies = [f"{figure(row[it])} ms" for it in ("p50", "p99", "p99.9")]
        rounds = f"{row['rounds']:.0f}"
        rows.append([DOES[name].format(version=version), figure(row["rps"]), *latencies, ratio, rounds])
    head = ("system", "requests/s", "p50", "p99", "p99.9", "bakerygw's throughput to it", "rounds")
    runs = f"{used['warm_up']:g} s of warm-up and {used['seconds']:g} s measured for each run"
    disturbed = max(row["waiting"] for row in result["systems"].values())
    failed = [f"{name} {row['errors']:.0f}" for name, row in result["systems"].items() if row["errors"]]
    errors = (
        f"**Answers that were errors: {', '.join(failed)}; figures with errors are worth nothing.** " if failed else ""
    )
    told = (
        f"{errors}{whereabouts(result)}. {used['connections']} connections; {runs}; medians of the rounds, and of the "
        f"pairs' ratios (lowest to highest). Other processes had the core of a system for {disturbed:.0%} of a run at "
        f"most. `RATE_LIMIT_REQUESTS={LIMIT}`; all other policies are at their defaults."
    )
    return f"![Throughput and latency of bakerygw and its peers](img/peers.svg)\n\n{table(head, rows)}\n\n{told}"


def promises(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for every promise: what came of it, by the compiled build where nothing else is said; or that it was not
    measured."""
    found = {it["name"]: (it, result) for result in results.values() for it in result.get("verdicts", [])}
    rows = []
    for name, words in MEASURES.items():
        if name not in found:
            rows.append([words, "", UNMEASURED, ""])
            continue
        it, result = found[name]
        build = " (plain build)" if result.get("machine", {}).get("build") == "plain" else ""
        unit = "×" if it["unit"] == "x" else it["unit"]  # noqa: RUF001
        promise = it["promise"].replace("<=", "≤").replace(">=", "≥")
        rows.append([words + build, promise, f"{figure(it['value'])} {unit}", "yes" if it["kept"] else "**no**"])
    return table(HEAD, rows)


def blocks_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What is written between the marks, by their name."""
    blocks = {"peers": peers(results["compare"]) if "compare" in results else UNMEASURED}
    blocks["promises"] = promises(results)
    if "flame" in results:
        blocks["costs"] = cost_table(results["flame"])
    return blocks


def results_in(folder: Path) -> dict[str, Any]:
    """What each of the scripts left there, by its name; other files are not read."""
    files = {name: folder / f"{name}.json" for name in SCRIPTS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}


def cost_table(result: Mapping[str, Any]) -> str:
    """What a request costs, by part."""
    total = sum(result["parts"].values())
    rows = [
        [part, f"{micros:.1f}", f"{micros / total:.0%}"] for part, micros in result["parts"].items() if micros >= 0.05
    ]
    rows.append(["**all of it**", f"**{total:.1f}**", ""])
    text = table(("part", "µs of the core for each request", "share"), rows)
    return f"![Where the time of a request goes](img/flame.svg)\n\n{text}\n\n{whereabouts(result)}."


def stacks_of(result: Mapping[str, Any]) -> dict[flamegraph.Stack, int]:
    """The samples, as `flame.py` kept them."""
    found: dict[flamegraph.Stack, int] = {}
    for frames, count in result["stacks"]:
        stack = tuple(flamegraph.Frame(*frame) for frame in frames)
        found[stack] = found.get(stack, 0) + count
    return found


def pictures(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(file name, SVG) of each picture for which there are results."""
    if "compare" in results:
        yield "peers.svg", charts.comparison(results["compare"]["systems"], "bakerygw and its peers, one core each")
    if "flame" in results:
        yield "flame.svg", flamegraph.draw(stacks_of(results["flame"]), "Where the time of a request goes")


def main() -> int:
    """All of it."""
    parser = arguments(__doc__)
    quick = parser.parse_args().quick
    results = results_in(RESULTS / "quick" if quick else RESULTS)
    blocks = blocks_of(results)
    if quick or not results:
        print("\n\n".join(blocks.values()))
        return 0
    drawn = dict(pictures(results))
    page = PAGE.read_text(encoding="utf-8")
    for name, text in blocks.items():
        page = replaced(page, name, text)
    PAGE.write_text(page, encoding="utf-8")
    for name, picture in drawn.items():
        (IMAGES / name).write_text(picture, encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)} and {IMAGES.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
