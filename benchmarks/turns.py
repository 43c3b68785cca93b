"""Ours and its peer taking turns: PyTorch as pip installs it, and PyTorch at its best.

Each way to run the peer is a process of its own, as libraries are preloaded when a process starts;
it makes a step whenever it is told to. `contest` finds the best way by trying one option after the
other. The processes may run in another Python that has torch and diffusers (--peer_python); where
they end at once, ours is measured alone, and why is printed.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import jax
import peer

from vqd_jax.core.cores import cores
from vqd_jax.runtime.hardware import chip

OPTIONS = {  # what may make the peer faster, in the order in which it is tried
    "mkl": "MKL's AVX-512 kernels on AMD processors, by a preloaded function that says Intel",
    "compile": "torch.compile of the network and of what surrounds it",
    "jemalloc": "the allocator jemalloc, preloaded, with the settings of PyTorch's tuning guide",
    "parts": "micro-batches as in ours, or a batch image by image",
    "bfloat16": "autocast to bfloat16",
}
JEMALLOC = (
    "oversize_threshold:1,background_thread:true,metadata_thp:auto,"
    "dirty_decay_ms:-1,muzzy_decay_ms:-1"
)
# Threads of OpenMP spin for 0.2 s after a step and would slow whoever is next
PAUSE = 0.3
TRIALS = 3
GAIN = 1.01  # an option stays if it is faster by that factor

# (seconds, seconds of all processors) of a step
Timing = tuple[float, float]
Step = Callable[[], Timing]


def options(**defaults: Any) -> argparse.ArgumentParser:
    """The arguments of both scripts."""
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, **defaults
    )
    parser.add_argument(
        "--device", choices=["cpu", "gpu", "tpu"], help="the best one there by default"
    )
    parser.add_argument("--sizes", nargs="*", default=["S", "small"], choices=peer.SIZES)
    parser.add_argument(
        "--options",
        nargs="*",
        default=list(OPTIONS),
        choices=OPTIONS,
        help="what to try to make the peer faster",
    )
    parser.add_argument(
        "--peer_python", default=sys.executable, help="the Python with torch and diffusers"
    )
    parser.add_argument("--peer", type=json.loads, help=argparse.SUPPRESS)  # see turns.Peer
    return parser


def timed(f: Callable[[], Any]) -> Timing:
    began = time.process_time()
    return peer.clock(f), time.process_time() - began


class Peer:
    """A process of `script` that makes steps of a case, with some of OPTIONS."""

    def __init__(
        self, command: list[str], case: dict[str, Any], options: frozenset[str], folder: Path
    ):
        self.options = options
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [*command, f"--peer={json.dumps(case | {'options': sorted(options)})}"],
            env=os.environ | environment(options, folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.about = self._read()

    def __call__(self) -> Timing:
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        seconds, processor = self._read()
        time.sleep(PAUSE)
        return seconds, processor

    def _read(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            last = self.log.read().strip().rsplit("\n", 1)[-1]
            raise ChildProcessError(f"PyTorch with {name(self.options)} ended: {last[:300]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(step: Callable[[], Any], **about: Any) -> None:
    """The other side of `Peer`: says `about` and the number of threads, and makes a step a line."""
    import torch

    out, sys.stdout = sys.stdout, sys.stderr
    threads = best_threads(step)
    print(
        json.dumps(about | {"threads": threads, "torch": torch.__version__}), file=out, flush=True
    )
    for _ in sys.stdin:
        print(json.dumps(timed(step)), file=out, flush=True)


def best_threads(step: Callable[[], Any]) -> int:
    """The number of torch's threads with which a step takes the least time; they are set."""
    import torch

    took = {}
    for threads in sorted({1, cores() // 2 or 1, cores()}):
        torch.set_num_threads(threads)
        step()
        took[threads] = peer.clock(step)
    torch.set_num_threads(best := min(took, key=took.get))
    return best


def name(options: frozenset[str]) -> str:
    return " + ".join(option for option in OPTIONS if option in options) or "nothing"


def environment(options: frozenset[str], folder: Path) -> dict[str, str]:
    """The environment in which a process has them; `folder` is for what is built."""
    preload, more = [], {"JAX_PLATFORMS": "cpu"}
    if "mkl" in options:
        library = folder / "intel.so"
        if not library.exists():
            source = folder / "intel.c"
            source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
            subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        preload.append(str(library))
    if "jemalloc" in options:
        preload.append(find_library("jemalloc"))
        more["MALLOC_CONF"] = JEMALLOC
    return more | ({"LD_PRELOAD": ":".join(preload)} if preload else {})


def available(option: str) -> bool:
    """Whether it can be tried here; the reason is printed if not."""
    if option == "mkl":
        info = Path("/proc/cpuinfo")
        return info.exists() and "AuthenticAMD" in info.read_text()
    if option == "jemalloc" and not find_library("jemalloc"):
        print("jemalloc is not installed (apt-get install libjemalloc2): not tried", flush=True)
        return False
    return True


@dataclasses.dataclass
class Contest:
    """The peers, by the names under which they are published, and what each option gained: the
    ratio of times without and with it, or why it failed.
    """

    peers: dict[str, Peer]
    tried: dict[str, float | str]

    @property
    def settings(self) -> dict[str, Any]:
        return {
            name: one.about | {"options": sorted(one.options)} for name, one in self.peers.items()
        }


@contextmanager
def contest(command: list[str], case: dict[str, Any], options: Sequence[str]) -> Iterator[Contest]:
    """PyTorch "as installed", "at its best" in float32, and "at its best in bfloat16" if that is
    faster still.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = lambda chosen: Peer(command, case, chosen, Path(folder))
        found = Contest({}, {})
        try:
            best = found.peers["as installed"] = found.peers["at its best"] = start(frozenset())
        except ChildProcessError as error:
            print(f"ours alone: {error}", flush=True)
            yield found
            return
        try:
            for option in filter(available, options):
                try:
                    other = start(best.options | {option})
                    seconds = take_turns({"without": best, "with": other}, TRIALS)
                except ChildProcessError as error:
                    found.tried[option] = str(error)
                    print(error, flush=True)
                    continue
                medians = [statistics.median(x["seconds"]) for x in seconds.values()]
                found.tried[option] = medians[0] / medians[1]
                print(f"PyTorch with {option}: {found.tried[option]:.2f} times", flush=True)
                if found.tried[option] < GAIN:
                    other.close()
                elif option == "bfloat16":
                    found.peers["at its best in bfloat16"] = other
                else:
                    if best.options:
                        best.close()
                    best = found.peers["at its best"] = other
            yield found
        finally:
            for one in {id(one): one for one in found.peers.values()}.values():
                one.close()


def take_turns(sides: Mapping[str, Step], rounds: int) -> dict[str, dict[str, list[float]]]:
    """The timings of each side, after two steps that do not count; every second round goes
    backwards.
    """
    for one in sides.values():
        one(), one()
    out = {name: {"seconds": [], "processor_seconds": []} for name in sides}
    for i in range(rounds):
        for name, one in [*sides.items()][:: 1 if i % 2 else -1]:
            seconds, processor = one()
            out[name]["seconds"].append(seconds)
            out[name]["processor_seconds"].append(processor)
    return out


def compare(
    sides: Mapping[str, Step], rows: int, flops: int, peak: float, rounds: int
) -> dict[str, Any]:
    """Rates and shares of the peak of sides that take turns, and the ratios of the first to each
    other one, by round.
    """
    timings, known = take_turns(sides, rounds), chip(jax.devices()[0].device_kind)
    out: dict[str, Any] = {}
    for side, timing in timings.items():
        median = statistics.median(timing["seconds"])
        out[side] = timing | {
            "images_per_second": rows / median,
            "share_of_measured_peak": flops / median / peak,
        }
        if known:
            out[side]["mfu"] = flops / median / known.peak
    first, *others = timings
    for side in others:
        for kind, ratio in (("seconds", "ratio"), ("processor_seconds", "ratio_of_processor_time")):
            pairs = zip(timings[first][kind], timings[side][kind], strict=True)
            out[side][ratio] = peer.spread([theirs / mine for mine, theirs in pairs])
    return out


def summary(compared: dict[str, Any]) -> str:
    """A line for each side."""
    lines = []
    for side, row in compared.items():
        line = (
            f"  {side}: {row['images_per_second']:.3g} images/s, "
            f"{row['share_of_measured_peak']:.0%} of the measured peak"
        )
        line += f", MFU {row['mfu']:.0%}" if "mfu" in row else ""
        if ratio := row.get("ratio"):
            low, high = ratio["quartiles"]
            line += f"; ours is {ratio['median']:.2f} ({low:.2f} to {high:.2f}) times as fast"
        lines.append(line)
    return "\n".join(lines)
