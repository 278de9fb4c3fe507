#!/usr/bin/env bash
# Builds bittorch on a Jetson beside the PyTorch that is installed there. docs/guide/jetson.md has the rest.
#
#     packaging/jetson/install.sh             in a checkout or an unpacked source distribution
#     packaging/jetson/install.sh --check     says what it found and what it would do, and changes nothing
#     packaging/jetson/install.sh --cpu       the C kernels alone, where PyTorch finds no CUDA device, or a broken one
#
# Environment: PYTHON (python3), and what setup.py reads; TORCH_CUDA_ARCH_LIST, MAX_JOBS and CUDA_HOME are chosen unless
# they are set. PyTorch is never installed or replaced. ROOT is the root of the system, for tests.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
ROOT=${ROOT:-}
GIGABYTES_PER_JOB=3 # of a compiler that has a file of CUDA kernels, or one that includes PyTorch

fail() {
    printf 'jetson: error: %s\n' "$*" >&2
    exit 1
}

say() { printf '%-10s %s\n' "$1" "$2"; }

find_board() {
    release=$(sed -n '1s/^# R\([0-9]*\) .*/\1/p' "$ROOT/etc/nv_tegra_release" 2>/dev/null || true)
    board=$(tr -d '\0' 2>/dev/null <"$ROOT/proc/device-tree/model" || echo "unknown board")
    case "$release" in
        36) jetpack="JetPack 6" ;;
        38) jetpack="JetPack 7" ;;
        "") fail "no release of L4T in $ROOT/etc/nv_tegra_release: this is no Jetson; see docs/guide/install.md" ;;
        *) fail "L4T $release is neither 36 (JetPack 6) nor 38 (JetPack 7); build by hand, as docs/guide/install.md says" ;;
    esac
    case "$board" in
        *Thor*) arch=11.0 ;;
        *Orin*) arch=8.7 ;;
        *) fail "$board is neither an Orin nor a Thor; set TORCH_CUDA_ARCH_LIST and build as docs/guide/install.md says" ;;
    esac
    say board "$board, $jetpack (L4T $release)"
}

# Prints version, CUDA version and what went wrong with a device, which may be nothing.
ask_torch() {
    "$PYTHON" - <<'CODE'
try:
    import torch
except ImportError as error:
    raise SystemExit(f"no {error}")
try:
    problem = "" if int(torch.ones(1, device="cuda").add(1)) == 2 else "it adds wrongly"
except Exception as error:
    problem = (str(error).splitlines() or [type(error).__name__])[0]
print(torch.__version__, torch.version.cuda or "none", problem, sep="\t")
CODE
}

find_torch() {
    local answer version cuda problem numbers
    answer=$(ask_torch 2>/dev/null) || fail "$PYTHON cannot import torch; install PyTorch for $jetpack first: docs/guide/jetson.md"
    IFS=$'\t' read -r version cuda problem <<<"${answer##*$'\n'}"
    IFS=. read -ra numbers <<<"$version"
    if [ "${numbers[0]}" -lt 2 ] || { [ "${numbers[0]}" -eq 2 ] && [ "${numbers[1]}" -lt 8 ]; }; then
        fail "PyTorch $version is installed, and bittorch needs 2.8 or later"
    fi
    say PyTorch "$version, CUDA $cuda"
    [ "$cpu" = yes ] && return
    [ "$cuda" != none ] || fail "PyTorch $version is built without CUDA; install one for $jetpack, or run this with --cpu"
    [ -z "$problem" ] || fail "PyTorch $version computes nothing on the device: $problem; mend that, or run this with --cpu"
}

find_toolkit() {
    CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
    TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$arch}
    local nvcc=$CUDA_HOME/bin/nvcc known
    [ -x "$nvcc" ] || fail "no $nvcc; install the toolkit of $jetpack (apt: nvidia-jetpack), or run this with --cpu"
    known=$("$nvcc" --list-gpu-arch)
    grep -qx "compute_${arch/./}" <<<"$known" || fail "$nvcc knows no compute capability $arch; Thor needs CUDA 13, Orin 11.4"
    export BITTORCH_CUDA=1 CUDA_HOME TORCH_CUDA_ARCH_LIST
    say toolkit "$CUDA_HOME, for $TORCH_CUDA_ARCH_LIST"
}

find_jobs() {
    local gigabytes cores
    gigabytes=$(awk '/^MemTotal:/ { print int($2 / 1000000) }' "$ROOT/proc/meminfo")
    cores=$(nproc)
    jobs=$((gigabytes / GIGABYTES_PER_JOB))
    [ "$jobs" -le "$cores" ] || jobs=$cores
    [ "$jobs" -ge 1 ] || jobs=1
    export MAX_JOBS=${MAX_JOBS:-$jobs}
    say compilers "$MAX_JOBS at once ($gigabytes GB of memory, $cores cores)"
}

cpu=no
check=no
for argument in "$@"; do
    case "$argument" in
        --cpu) cpu=yes ;;
        --check) check=yes ;;
        *) fail "unknown argument $argument; there are --check and --cpu" ;;
    esac
done
machine=${MACHINE:-$(uname -m)}
[ "$machine" = aarch64 ] || fail "this machine is $machine, and a Jetson is aarch64; see docs/guide/install.md"
find_board
find_torch
if [ "$cpu" = yes ]; then export BITTORCH_CUDA=0 && say toolkit "none, C kernels alone"; else find_toolkit; fi
find_jobs
[ "$check" = no ] || exit 0
"$PYTHON" -m pip install 'setuptools>=77' safetensors
"$PYTHON" -m pip install --no-build-isolation --no-deps .
cd / # where the checkout is not imported
"$PYTHON" -m bittorch doctor
