"""Trains small runs that are killed again and again, and compares their ends, bit for bit, with one
that was not.

  python benchmarks/kill.py --kills=100 --out=results/kill.json

Each run, both stages on emoji, gets a signal, SIGKILL or SIGTERM, at every kind of moment at which
it writes (the data set, inside saves, tokens, pictures, between the stages …) and at random ones,
20 in all, and goes on by the same command. The runs take the settings of `killing.ODD` in turn.
Compared are parameters, averages, optimizer and record
in the checkpoints, their sums, metrics.jsonl without times, tokens, pictures, the data set and what
files there are. `tests/helpers/killing.py` has the moments. Runs that differ stay in the workdir.
`--seed` chooses when and where.
"""

import argparse
import collections
import functools
import json
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from peer import provenance  # noqa: E402

from helpers import killing  # noqa: E402

EACH = 20  # kills of a run
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/kill"), help="must not exist yet"
    )
    parser.add_argument("--out", type=Path, default=Path("results/kill.json"))
    parser.add_argument("--python", default=sys.executable, help="the interpreter that trains")
    args = parser.parse_args()
    if args.kills < EACH or args.kills % EACH:
        parser.error(f"--kills must be a multiple of {EACH}, got {args.kills}")
    if args.workdir.exists():
        parser.error(f"{args.workdir} exists already: choose another --workdir")
    work = args.workdir.resolve()
    say(f"working in {work}, writing {args.out}")
    began, programs, rows, found = time.monotonic(), work / "programs", [], []
    for run in range(args.kills // EACH):
        kind = [*killing.ODD][run % len(killing.ODD)]
        workdir, reference, starts = work / f"run{run}", work / f"reference of {kind}", []
        start = functools.partial(
            killing.start, cache=programs, python=args.python, settings=killing.ODD[kind]
        )
        if not reference.exists():
            done = start(reference, None, limit=1800)
            if done.status:
                sys.exit(f"{done.output}\nthe run with {kind} failed without kills")
            say(f"{kind}, without kills: {done.seconds:.0f} s")
        for kill in [*killing.schedule(EACH, args.seed + run, SIGNALS), None]:
            starts.append(done := start(workdir, kill))
            if kill:
                rows.append(
                    {
                        "run": run,
                        "settings": kind,
                        "signal": kill.signal.name,
                        "landed": done.landed or "missed",
                        "status": done.status,
                        "seconds": round(done.seconds, 1),
                        "seconds_to_end": round(done.grace, 1),
                    }
                )
                say(
                    f"{len(rows):4} {kill.signal.name} {rows[-1]['landed']}: status {done.status} "
                    f"after {done.grace:.1f} s"
                )
        found.append(
            wrong(starts)
            + (killing.differences(reference, workdir) if not starts[-1].status else [])
        )
        say(f"run {run}, {kind}: {'; '.join(found[-1]) or 'as without kills, bit for bit'}")
        if not found[-1]:
            shutil.rmtree(workdir)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps(
            provenance()
            | {
                "seed": args.seed,
                "kills": len(rows),
                "minutes": (time.monotonic() - began) / 60,
                "settings": killing.ODD,
                "differences": found,
                "landed": table(rows),
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )
    say(json.dumps(table(rows), indent=1))
    say(args.out)
    sys.exit(any(found))


def wrong(starts: list[killing.Start]) -> list[str]:
    """Starts that did not end as they should: killed, with status 143 within 30 s of a SIGTERM, or,
    the last one, finished.
    """
    out = []
    for i, done in enumerate(starts):
        status = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}
        wanted = status[done.kill.signal] if done.kill and done.reached else 0
        if (
            done.status != wanted
            or done.grace > 30
            or "Traceback" in done.output
            or done.kill
            and not done.reached
        ):
            out.append(
                f"start {i} ({done.landed or 'no kill'}) ended with {done.status} after "
                f"{done.grace:.1f} s: {done.output[-2000:]}"
            )
    return out


def table(rows: list[dict]) -> dict[str, dict[str, int]]:
    """Where the kills landed: signal -> count."""
    counts = collections.Counter((row["landed"], row["signal"]) for row in rows)
    places = dict.fromkeys(row["landed"] for row in rows)
    return {
        place: {name: n for (at, name), n in sorted(counts.items()) if at == place}
        for place in places
    }


def say(text: object) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
