"""All kinds of faults, many times, and a table of how the runs ended.

python -m tests.chaos [--seed N] [--kind WORDS] [--runs N]    # --runs: of each kind, instead of its own number
"""

from __future__ import annotations

import argparse
import itertools
import time
import traceback
from collections import Counter

from tests.chaos.endings import AGAIN, RIGHT, SilentDifference
from tests.chaos.faults import KINDS
from tests.chaos.preparing import prepared, run_one, with_cases


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first run of each kind")
    parser.add_argument("--kind", default="", help="only kinds with these words in their name")
    parser.add_argument("--needs", help="only kinds that need this: '', s3, ray, 'ray and s3', nodes")
    parser.add_argument("--runs", type=int, help="of each kind")
    options = parser.parse_args()
    chosen = {
        name: kind for name, kind in KINDS.items() if options.kind in name and options.needs in (None, kind.needs)
    }
    endings: dict[str, Counter[str]] = {name: Counter() for name in chosen}
    began = time.monotonic()
    with with_cases() as (folder, cases):
        by_needs = itertools.groupby(sorted(chosen, key=lambda name: chosen[name].needs), lambda n: chosen[n].needs)
        for needs, names in by_needs:
            with prepared(folder, needs, cases) as arena:
                for name in names:
                    for seed in range(options.seed, options.seed + (options.runs or chosen[name].runs)):
                        began_one = time.monotonic()
                        try:
                            ending = run_one(name, seed, arena)
                            how, detail = ending.how, ending.detail
                        except SilentDifference as error:
                            how, detail = "SILENT", str(error)
                        except BaseException as error:
                            if isinstance(error, KeyboardInterrupt):
                                raise
                            how, detail = "UNNAMED", traceback.format_exc()
                        endings[name][how] += 1
                        took_s = time.monotonic() - began_one
                        print(f"{name}, seed {seed}: {how} ({took_s:.1f} s) {detail}", flush=True)
    print(f"\n{sum(map(Counter.total, endings.values()))} runs in {time.monotonic() - began:.0f} s\n")
    print(table(endings))
    return int(any(counts["SILENT"] + counts["UNNAMED"] for counts in endings.values()))


def table(endings: dict[str, Counter[str]]) -> str:
    """In Markdown: per kind, how many runs ended how."""
    lines = ["| fault | runs | right bytes | right, run again | named error | silent |", "|---|---|---|---|---|---|"]
    for name, counts in endings.items():
        errors = {how: n for how, n in sorted(counts.items()) if how not in (RIGHT, AGAIN, "SILENT")}
        named = ", ".join(f"{n} {how}" for how, n in errors.items())
        cells = [name, counts.total(), counts[RIGHT], counts[AGAIN], named or 0, counts["SILENT"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
