#!/bin/sh
# Proves the CUDA half on a machine with an NVIDIA GPU, its CUDA toolkit in /usr/local/cuda, gcc and make,
# where nothing can be installed: builds, tests, checks memory accesses, measures.
#
#     experiments/gpu_check.sh --prepare     on a Debian machine with a network: fetches packages into .gpu/
#     experiments/gpu_check.sh [LOGS]        on the GPU machine, with .gpu/ brought along; full logs go to LOGS
#
# Without .gpu/ the machine's own packages are used.
set -u
cd "$(dirname "$0")/.." || exit 1

# The packages "$@" and what they depend on, one a line.
with_dependencies() {
    apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances "$@" | grep '^[a-z0-9]' | sort -u
}

# All that building and testing takes (the launcher's list) but for what the compiler and dpkg are made of, which
# has to be the machine's own.
if [ "${1-}" = --prepare ]; then
    mkdir -p .gpu
    # shellcheck disable=SC2046 # lists of words
    with_dependencies $(sed -n 's/^\(build\|run\) *\([^ ]*\).*/\2/p' .packages | grep -v bible) >.gpu/wanted
    with_dependencies gcc g++ make libc6-dev dpkg >.gpu/there
    cd .gpu || exit 1
    # shellcheck disable=SC2046
    exec apt-get -qq download $(comm -23 wanted there) libjansson4 # Debian's linker uses it, others have their own
fi

logs=${1-build/gpu_check}
mkdir -p "$logs"
status=0

say() { printf '== %s\n' "$*"; }

# Runs a step, at most $1 seconds; its log is file $2. A failing step shows the end of its log.
step() {
    seconds=$1
    log=$logs/$2
    shift 2
    if timeout "$seconds" "$@" >"$log" 2>&1; then return 0; fi
    say "failed: $*"
    tail -n 30 "$log"
    status=1
    return 1
}

# Puts the packages' files in the way of compiler, loader and Lua.
use_packages() {
    root=$PWD/.gpu/root
    mkdir -p "$root"
    for package in .gpu/*.deb; do dpkg -x "$package" "$root"; done
    lib=$root/usr/lib/x86_64-linux-gnu
    export PATH="$root/usr/bin:$PATH"
    export CPATH="$root/usr/include:$root/usr/include/luajit-2.1"
    export LIBRARY_PATH="$lib"
    export LD_LIBRARY_PATH="$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    export LUA_PATH="$root/usr/share/lua/5.1/?.lua;$root/usr/share/lua/5.1/?/init.lua;;"
    export LUA_CPATH="$lib/lua/5.1/?.so;;"
}

export PATH="$PATH:/usr/local/cuda/bin"
[ ! -d .gpu ] || use_packages
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
gcc --version | head -n 1
step 20 premake.log premake4 --file=premake5.lua gmake || exit 1
step 300 build.log make -C build -j"$(nproc)" config=release || {
    # A newer gcc may warn of more: that is a failure, but the rest is worth knowing all the same.
    sed -i 's/-Werror//g' build/*.make
    step 300 build_again.log make -C build -j"$(nproc)" config=release || exit 1
}
cuobjdump -res-usage build/liblsa_cuda.so 2>/dev/null | grep -A 1 'Function' | sed -n 's/ *Function \(.*\):/\1/p; s/.*\(REG:.*LOCAL:[0-9]*\).*/  \1/p'

lsa=build/bin/lsa
# Every kernel's inputs on both halves; the sanitizers where specs are small.
kernels="rmsnorm rope hadamard hyper_connection moe linear kv_record convert topk select ensemble softmax_sum reduce
    pages where copy uniform spread bound_query elementwise index_score attention pick"
for kernel in $kernels; do
    step 120 "$kernel.log" "$lsa" test --device cuda "tests/${kernel}_spec.lua" &&
        say "$kernel on cuda: $(tail -n 1 "$logs/$kernel.log")"
done
for kernel in rmsnorm rope hadamard hyper_connection moe topk spread where index_score attention pick; do
    for tool in memcheck racecheck initcheck; do
        step 150 "$tool.log" compute-sanitizer --tool "$tool" --error-exitcode 9 "$lsa" test --device cuda \
            "tests/${kernel}_spec.lua" &&
            say "$kernel, $tool: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$logs/$tool.log")"
    done
done
step 120 cpu.log "$lsa" test tests/index_score_spec.lua tests/topk_spec.lua && say "cpu: $(tail -n 1 "$logs/cpu.log")"
step 120 bench_cuda.log "$lsa" bench index_score_cuda && cat "$logs/bench_cuda.log"
step 120 bench_cpu.log "$lsa" bench "index_score " && tail -n +6 "$logs/bench_cpu.log"
step 60 bench_topk.log "$lsa" bench topk_push && tail -n +7 "$logs/bench_topk.log"
if command -v ncu >/dev/null; then
    step 120 ncu.log ncu --clock-control none --kernel-name regex:index_score_mma --launch-skip 2 --launch-count 1 \
        --section SpeedOfLight --section Occupancy --section WarpStateStats "$lsa" bench "index_score_cuda 1 x 64 heads x 128, 1000000 keys fp8" &&
        grep -E 'Duration|Throughput|Achieved Occupancy|Registers|Warp Cycles' "$logs/ncu.log"
fi
exit $status
