"""Eviction policies against libCacheSim: millions of touches a second on one Zipf-like trace, both on one thread.

    pip install libcachesim
    python experiments/peers/libcachesim_speed.py [--touches N] [--ids N] [--capacity N] [--rounds N] [--seed S]

libCacheSim replays natively: its reader's loop over the mapped trace is in C. Ours is lua/lsa/evictions/*.lua, called
by lsa.cache. The two take turns; each one's best time counts.
"""
import argparse
import pathlib
import subprocess
import tempfile
import time

import libcachesim

ROOT = pathlib.Path(__file__).resolve().parents[2]
THEIRS = {"lru": "LRU", "sieve": "Sieve", "s3fifo": "S3FIFO", "arc": "ARC", "lfu": "LFU", "wtinylfu": "WTinyLFU"}
RUNS = 3


def script(*arguments):
    command = [ROOT / "lsa", ROOT / "experiments/peers/libcachesim_speed.lua", *arguments]
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def ours(options, best):
    text = script("replay", options.touches, options.ids, options.seed, options.capacity, RUNS, *THEIRS)
    for line in text.splitlines():
        name, hits, ns = line.split(",")
        before = best.get(name, (0, float("inf")))
        best[name] = int(hits), min(before[1], float(ns))


def theirs(options, path, best):
    for name, peer in THEIRS.items():
        for _ in range(RUNS):
            # A cell for each id held: more leave the caches, and the default of 2^24 takes longer to allocate than to use.
            cache = getattr(libcachesim, peer)(options.capacity, hashpower=13)
            reader = libcachesim.TraceReader(path, libcachesim.TraceType.ORACLE_GENERAL_TRACE)
            start = time.perf_counter_ns()
            missed, _ = cache.process_trace(reader)
            ns = time.perf_counter_ns() - start
            before = best.get(name, (0, float("inf")))
            best[name] = round((1 - missed) * options.touches), min(before[1], ns)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--touches", type=int, default=1000000)
    parser.add_argument("--ids", type=int, default=100000)
    parser.add_argument("--capacity", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    mine, peer = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        path = directory + "/trace.oracleGeneral"
        script("write", path, options.touches, options.ids, options.seed)
        for _ in range(options.rounds):
            ours(options, mine)
            theirs(options, path, peer)

    print("%d touches of %d ids, %d present; millions of touches a second" % (options.touches, options.ids, options.capacity))
    print("%-10s %10s %12s %8s %12s %12s" % ("eviction", "lsa", "libCacheSim", "ratio", "hits", "theirs"))
    for name in THEIRS:
        a, b = options.touches / mine[name][1] * 1e3, options.touches / peer[name][1] * 1e3
        print("%-10s %10.1f %12.1f %8.2f %12d %12d" % (name, a, b, a / b, mine[name][0], peer[name][0]))


if __name__ == "__main__":
    main()
