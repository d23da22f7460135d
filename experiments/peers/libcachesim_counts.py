"""Eviction policies against libCacheSim: hits on the same page traces at the same capacity.

    pip install libcachesim
    python experiments/peers/libcachesim_counts.py [--accesses N] [--seed S] [--write]

Prints a table of ours and theirs; exits with 1 where a policy that both define alike differs. --write stores their
counts in tests/libcachesim_counts.lua, which the tests compare with.

Random draws from another generator and WTinyLFU counts in another sketch (lua/lsa/evictions/wtinylfu.lua says how
they differ): for those two the table shows the difference and no more is asked.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile
from array import array

import libcachesim

ROOT = pathlib.Path(__file__).resolve().parents[2]
CAPACITIES = [20, 60, 200, 1000]
ALIKE = ["FIFO", "LRU", "SLRU", "LFU", "Clock", "Clock2", "Sieve", "S3FIFO", "ARC", "Belady"]
OTHER = ["WTinyLFU", "Random"]
NEVER = 2**63 - 1


def make(name, capacity):
    # A hash table of 2^16 cells: the default of 2^24 takes longer to allocate than a trace to replay.
    options = dict(hashpower=16)
    if name == "Clock2":
        return libcachesim.Clock(capacity, n_bit_counter=2, **options)
    return getattr(libcachesim, name)(capacity, **options)


def next_uses(trace):
    last, out = {}, [NEVER] * len(trace)
    for i in range(len(trace) - 1, -1, -1):
        out[i] = last.get(trace[i], NEVER)
        last[trace[i]] = i + 1
    return out


def hits(name, capacity, trace, uses):
    cache = make(name, capacity)
    request = libcachesim.Request(obj_size=1, op=libcachesim.ReqOp.OP_GET)
    count = 0
    for page, use in zip(trace, uses):
        request.obj_id, request.next_access_vtime = page, use
        count += cache.get(request)
    return count


def ours(directory, accesses, seed):
    command = [ROOT / "lsa", ROOT / "experiments/peers/libcachesim_counts.lua", directory, accesses, seed, *CAPACITIES]
    text = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    counts = {}
    for line in text.splitlines():
        trace, capacity, name, count = line.split(",")
        counts[trace, int(capacity), name] = int(count)
    return counts


def write(path, accesses, seed, theirs):
    lines = [
        "-- libCacheSim %s's hits on the traces of tests/traces.lua; written by" % version(),
        "-- experiments/peers/libcachesim_counts.py --write.",
        "return {",
        "  accesses = %d, seed = %d," % (accesses, seed),
    ]
    for trace in sorted({key[0] for key in theirs}):
        lines.append("  %s = {" % trace)
        for capacity in CAPACITIES:
            row = ["%s = %d" % (name, theirs[trace, capacity, name]) for name in ALIKE]
            lines.append("    [%d] = {%s}," % (capacity, ", ".join(row)))
        lines.append("  },")
    path.write_text("\n".join(lines) + "\n}\n")


def version():
    from importlib.metadata import version as of

    return of("libcachesim")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accesses", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=88675123)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()

    theirs = {}
    with tempfile.TemporaryDirectory() as directory:
        mine = ours(directory, options.accesses, options.seed)
        traces = {}
        for name in {key[0] for key in mine}:
            traces[name] = array("i", (pathlib.Path(directory) / (name + ".i32")).read_bytes())
    for name, trace in traces.items():
        uses = next_uses(trace)
        for capacity in CAPACITIES:
            for policy in ALIKE + OTHER:
                theirs[name, capacity, policy] = hits(policy, capacity, trace, uses)

    different = 0
    print("libCacheSim %s, %d accesses a trace; hits: ours, theirs where they differ" % (version(), options.accesses))
    print("%-8s %8s" % ("trace", "capacity") + "".join("%16s" % name for name in ALIKE + OTHER))
    for name in sorted(traces):
        for capacity in CAPACITIES:
            row = "%-8s %8d" % (name, capacity)
            for policy in ALIKE + OTHER:
                key = (name, capacity, policy)
                same = mine[key] == theirs[key]
                different += policy in ALIKE and not same
                row += "%16s" % (mine[key] if same else "%d (%d)" % (mine[key], theirs[key]))
            print(row)
    print("%d of %d counts that should be equal differ" % (different, len(traces) * len(CAPACITIES) * len(ALIKE)))
    if options.write:
        write(ROOT / "tests/libcachesim_counts.lua", options.accesses, options.seed, theirs)
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
