#!/bin/bash
# Proves the CUDA half on a machine with an NVIDIA GPU, its CUDA toolkit in /usr/local/cuda, gcc and make, where nothing can be
# installed: builds, tests kernels and sessions on the GPU, checks memory accesses and races, measures, answers the quickstart's
# questions, and prints a short table, in less than ten minutes.
#
#     experiments/gpu_check.sh --prepare     on a Debian machine with a network: fetches packages and a text into .gpu/
#     experiments/gpu_check.sh [LOGS]        on the GPU machine, with .gpu/ brought along; full logs go to LOGS
#
# Without .gpu/ the machine's own packages are used.
set -u
case ${1-} in
-h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac
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
    with_dependencies $(sed -n 's/^\(build\|run\) *\([^ ]*\).*/\2/p' .packages | grep -v -e bible -e gnuplot -e cmark) >.gpu/wanted
    with_dependencies gcc g++ make libc6-dev dpkg >.gpu/there
    cd .gpu || exit 1
    bible -l99999 gen1:1-rev22:21 2>/dev/null | sed -n 's/^ *[0-9][0-9]* \(.*\)/\1/p' >text # as lua/lsa/texts.lua has it
    # shellcheck disable=SC2046
    exec apt-get -qq download $(comm -23 wanted there) libjansson4 # Debian's linker uses it, others have their own
fi

logs=$(mkdir -p "${1-build/gpu_check}" && cd "${1-build/gpu_check}" && pwd)
results=$logs/results
most=585 # seconds that all of it may take
began=$(date +%s)
: >"$results"

say() { printf '== %s\n' "$*"; }

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

# check SECONDS NAME COMMAND...: one line of the table; its log is NAME.log.
check() {
    local seconds=$1 name=$2 start left code last
    start=$(date +%s)
    left=$((began + most - start))
    shift 2
    [ "$seconds" -lt "$left" ] || seconds=$((left > 1 ? left : 1))
    timeout "$seconds" "$@" >"$logs/$name.log" 2>&1
    code=$?
    case $name in
    *memcheck | *initcheck | *synccheck | *racecheck) last=$(grep -E 'SUMMARY' "$logs/$name.log" | tail -n 1 | sed 's/^=* *//') ;;
    *) last=$(tail -n 1 "$logs/$name.log") ;;
    esac
    if [ "$code" -eq 124 ]; then last="not done in $seconds s"; fi
    printf '%-6s %-32s %4d s  %s\n' "$([ "$code" -eq 0 ] && echo ok || echo FAILED)" "$name" $(($(date +%s) - start)) "${last:0:70}" >>"$results"
    return "$code"
}
export -f check
export logs results began most

spec() { check "$1" "$2" "$lsa" test --device cuda "tests/$2_spec.lua"; }
sanitized() { # no backtrace of the host: compiled Lua has none, and unwinding it ends the process
    check 200 "$1-$2" compute-sanitizer --tool "$2" --show-backtrace device --error-exitcode 9 "$lsa" test --device cuda "tests/$1_spec.lua"
}
export -f spec sanitized

# many COMMAND: runs it with each line's words of standard input, several at a time. What fails is in the table: xargs is not told, for
# after some exit codes it leaves, without those that still run.
many() { xargs -P "$(($(nproc) / 2 + 1))" -L 1 bash -c "$1 \"\$@\" || :" _; }

export PATH="$PATH:/usr/local/cuda/bin"
[ ! -d .gpu ] || use_packages
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader)
lsa=$PWD/build/bin/lsa
export lsa

premake4 --file=premake5.lua gmake >"$logs/premake.log" 2>&1 || exit 1
build() { NVCC_APPEND_FLAGS=-Xptxas=-v make -C build -O -j"$(nproc)" config=release; }
export -f build
if ! check 240 build bash -c build; then
    # A newer gcc may warn of more: that is a failure, but the rest is worth knowing all the same.
    sed -i 's/-Werror=all-warnings//g; s/-Werror//g' build/*.make
    check 240 build_without_werror bash -c build || exit 1
fi
cat "$logs"/build*.log >"$logs/compilers.log"
check 60 registers_and_instructions luajit .ci/kernels.lua "$logs/compilers.log" build/liblsa_cuda.so

# Every kernel that has a CUDA half, on both; what stands around them; whole sessions on the GPU.
for kernel in kernels/*.cu; do
    name=$(basename "$kernel" .cu)
    [ ! -e "tests/${name}_spec.lua" ] || echo "150 $name"
done | many spec
for name in cuda gpu_pool gpu_faults model_on_gpu look mirror on_demand_on_gpu golden session on_demand batch lsa_batch session_random session_file replay; do
    echo "170 $name"
done | many spec
for name in rmsnorm hadamard moe topk where gather reside demand chain entropy embed; do
    for tool in memcheck racecheck initcheck synccheck; do echo "$name $tool"; done
done | many sanitized

check 100 bench "$lsa" bench --device cuda
text=bible
[ ! -s .gpu/text ] || text=.gpu/text
check 100 quickstart "$lsa" experiments/quickstart.lua --device cuda --text "$text"

grep -v '^ok' "$results" | while read -r _ name _; do
    say "the end of $name.log"
    tail -n 15 "$logs/$name.log"
done
say "bench"
cat "$logs/bench.log"
say "quickstart"
cat "$logs/quickstart.log"
say "$gpu: $(grep -c '^ok' "$results") ok, $(grep -cv '^ok' "$results") failed, in $(($(date +%s) - began)) s"
cat "$results"
! grep -qv '^ok' "$results"
