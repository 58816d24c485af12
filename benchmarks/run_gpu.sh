#!/usr/bin/env bash
# Everything a GPU machine should measure, in under 20 minutes: tables on stdout, JSON files in a folder.
#
#   benchmarks/run_gpu.sh [FOLDER [PART…]]
#
# FOLDER defaults to benchmarks/results/gpu. Without PARTs all of them run, one after the other; each has its own limit
# of time, and one that fails does not stop the rest. PYTHON chooses the interpreter. Images are generated.
set -u

repository=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$repository/benchmarks/results/gpu}
shift $(($# > 0 ? 1 : 0))
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
parts=("$@")
if [ ${#parts[@]} -eq 0 ]; then
  parts=(limits tests unet_128_64px unet_128_128px unet_32_32px flowers_64 sampling compiling checkpoint startup)
fi
python=${PYTHON:-python}
export PYTHONPATH=$repository
cd "$repository" || exit 1
failed=()

# limited SECONDS PART COMMAND…: its figures go to FOLDER/PART, what it says also to FOLDER/PART.log.
limited() {
  local seconds=$1 part=$2
  shift 2
  printf '\n== %s\n' "$part"
  RESULTS=$folder/$part timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$folder/$part.log"
  if [ "${PIPESTATUS[0]}" -ne 0 ]; then
    failed+=("$part")
  fi
}

# throughput SECONDS PART OPTIONS…: compiled, which a run as short as these would not choose by itself.
throughput() {
  local seconds=$1 part=$2
  shift 2
  limited "$seconds" "$part" "$python" benchmarks/throughput.py "$@" -- train.compile=true
}

# The 818,900 images of the recipe behind ddpm-ema-flowers-64 (100 epochs), at the rate just measured.
flowers() {
  "$python" - "$folder/flowers_64" <<'PYTHON'
import json, pathlib, statistics, sys
folder = pathlib.Path(sys.argv[1])
result = json.loads((folder / "throughput.json").read_text())
rate = statistics.median(result["figures"]["ours"]["images_per_second"])
figures = {"images": 818_900, "images_per_second": rate, "minutes": 818_900 / rate / 60}
(folder / "flowers.json").write_text(json.dumps({**result, "figures": figures}, indent=1) + "\n")
print(f"818,900 images  {figures['minutes']:.1f} minutes, extrapolated from {rate:,.0f} images/s")
PYTHON
}

started=$SECONDS
for part in "${parts[@]}"; do
  case $part in
    limits) limited 60 limits "$python" benchmarks/limits.py ;;
    tests)
      # On a GPU a step that waits for the device raises.
      limited 120 tests "$python" -m pytest -q -p no:cacheprovider tests/test_compute.py -k "never_waits or fast_path"
      ;;
    unet_128_64px) throughput 240 "$part" --model unet_128 --resolution 64 --batch-size 256 --repeats 2 --against tuned ;;
    unet_128_128px) throughput 170 "$part" --model unet_128 --resolution 128 --batch-size 64 --repeats 1 --against tuned ;;
    unet_32_32px) throughput 170 "$part" --model unet_32 --resolution 32 --batch-size 512 --repeats 2 --against tuned ;;
    flowers_64)
      # 4 GPUs had 16 images each.
      throughput 120 "$part" --model unet_128 --resolution 64 --batch-size 64 --repeats 1 --against
      flowers
      ;;
    sampling) limited 60 "$part" "$python" benchmarks/sampling.py --model unet_32 --resolution 32 --images 64 --repeats 3 ;;
    compiling) limited 100 "$part" "$python" benchmarks/compiling.py --model unet_32 --resolution 32 --batch-size 128 ;;
    checkpoint) limited 80 "$part" "$python" benchmarks/checkpoint.py --saves 3 ;;
    startup) limited 70 "$part" "$python" benchmarks/startup.py --runs 1 ;;
    *)
      echo "no such part: $part" >&2
      failed+=("$part")
      ;;
  esac
done
printf '\n%s seconds; failed: %s\n' $((SECONDS - started)) "${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
