"""The command behind ``scripts/bench``: run what the registry finds, one after another, and print table or JSON."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.bench.registry import Result, discover, names_of, run_in_process, run_module

FOLDER = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    """Exit code 0 when every figure reaches what it should, 1 when one does not or could not be taken, 2 for usage."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Ratios in one run on one machine; medians.")
    parser.add_argument("--json", action="store_true", help="one object on stdout instead of the table")
    parser.add_argument("--only", metavar="NAME", action="append", help="this benchmark, by its name or its module's")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and run none")
    parser.add_argument("--module", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.module:
        Path(options.out).write_text(json.dumps(run_module(Path(options.module))))
        return 0

    found = discover(FOLDER)
    if options.only:
        wanted = set(options.only)
        found = [path for path in found if wanted & {path.stem, path.stem.removeprefix("bench_"), *names_of(path)}]
        if not found:
            print(f"no benchmark is called {', '.join(sorted(wanted))}; --list names them", file=sys.stderr)
            return 2
    if options.list:
        for path in found:
            print(path.stem, *names_of(path))
        return 0

    results: list[Result] = []
    for path in found:
        if sys.stderr.isatty() or not options.json:
            print(f"{path.stem} ...", file=sys.stderr, flush=True)
        taken = run_in_process(path)
        exact = {each["name"] for each in taken} & set(options.only or ())
        results += [each for each in taken if not exact or each["name"] in exact]
    print(json.dumps({"benchmarks": results}) if options.json else table(results))
    return 0 if results and all(result["ok"] for result in results) else 1


def table(results: list[Result]) -> str:
    """One line a figure: name, value, what to reach, verdict, then both sides' figures below."""
    wide = max([len(result["name"]) for result in results] + [4])
    lines = [f"{'name':{wide}}  {'value':>14}  {'reach':>12}  ok"]
    for result in results:
        value, reach = (_figure(result[key]) for key in ("value", "reach"))
        verdict = "yes" if result["ok"] else "NO"
        lines.append(f"{result['name']:{wide}}  {value:>14}  {reach:>12}  {verdict:3}  {result['unit']}")
        lines += [f"{'':{wide}}    {key}: {_figure(value)}" for key, value in result["detail"].items()]
    return "\n".join(lines)


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "-" if value is None else str(value)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
