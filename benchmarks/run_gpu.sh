#!/usr/bin/env bash
# Everything a GPU machine should measure, in under 20 minutes: tables on stdout, JSON files in a folder, and at the end
# which goals are met and which figure is short.
#
#   benchmarks/run_gpu.sh [FOLDER [PART…]]
#   REHEARSE=1 benchmarks/run_gpu.sh [FOLDER [PART…]]    does it run? The same on a CPU, as small as it goes
#
# FOLDER defaults to benchmarks/results/gpu (of a rehearsal, to a new one). Without PARTs all but the last two run, what
# matters most first. Each fits into ten minutes by itself: PARTs of several calls come into one table of goals, if they
# have the same FOLDER. One that fails does not stop the rest; the exit code is then 1. PYTHON chooses the interpreter.
# Images are generated.
set -u

# PART and the seconds that it may take; all of them together may take no more than `whole`.
budgets="
limits 50
tests 150
unet_128_64px 300
unet_32_32px 260
flowers_64 190
checkpoint 90
deterministic 150
sampling 50
compiling 150
deterministic_compiled 200
startup 120
unet_128_128px 200
"
whole=1190

repository=$(cd "$(dirname "$0")/.." && pwd)
rehearse=${REHEARSE:-}
if [ -n "$rehearse" ] && [ $# -eq 0 ]; then
  set -- "$(mktemp -d)"
fi
folder=${1:-$repository/benchmarks/results/gpu}
shift $(($# > 0 ? 1 : 0))
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
python=${PYTHON:-python}
export PYTHONPATH=$repository
cd "$repository" || exit 1
failed=()

# A rehearsal says these after the others; the last one counts. On a CPU compiling a run takes minutes: one part does.
tiny_network=() tiny_case=() tiny_images=() tiny_saves=() compiled=train.compile=true
if [ -n "$rehearse" ]; then
  tiny_network=(--model tiny --resolution 8)
  tiny_case=("${tiny_network[@]}" --batch-size 4 --steps 12 --repeats 1 --photographs 40)
  tiny_images=("${tiny_network[@]}" --images 2 --steps 2 --repeats 1)
  tiny_saves=(--model tiny --saves 1)
  compiled=train.compile=false
fi

# limited PART COMMAND…: its figures go to FOLDER/PART, what it says also to FOLDER/PART.log.
limited() {
  local part=$1 seconds=900 left=$((whole - SECONDS))
  shift
  if [ -z "$rehearse" ]; then
    seconds=$(awk -v part="$part" '$1 == part { print $2 }' <<<"$budgets")
    seconds=$((seconds < left ? seconds : left))
  fi
  local started=$SECONDS
  if [ "$seconds" -le 0 ]; then
    echo "no time left"
    failed+=("$part")
    return
  fi
  # KILL reaches also the programs that it has started, which would take another signal as the wish to save.
  RESULTS=$folder/$part timeout --signal=KILL "$seconds" "$python" "$@" 2>&1 | tee "$folder/$part.log"
  local code=${PIPESTATUS[0]}
  if [ "$code" -ne 0 ]; then
    failed+=("$part")
    echo "failed with exit code $code (137: its $seconds seconds were over)"
  fi
  echo "took $((SECONDS - started)) of $seconds seconds"
}

# throughput PART OPTIONS…: compiled, which a run as short as these would not choose by itself, and with as many images
# as the flowers: of few, an epoch would be over before all workers of the peer have something to do.
throughput() {
  local part=$1
  shift
  limited "$part" benchmarks/throughput.py "$@" --photographs 8189 "${tiny_case[@]}" -- "$compiled"
}

# deterministic PART OPTIONS…
deterministic() {
  local part=$1
  shift
  local size=(--model unet_32 --resolution 32 --batch-size 128 --steps 60 --repeats 1 "${tiny_case[@]}")
  limited "$part" benchmarks/deterministic.py "${size[@]}" "$@"
}

parts=("$@")
if [ ${#parts[@]} -eq 0 ]; then
  mapfile -t parts < <(awk 'NF { print $1 }' <<<"$budgets" | head -n -2)
fi
for part in "${parts[@]}"; do
  printf '\n== %s\n' "$part"
  case $part in
    limits) limited "$part" benchmarks/limits.py ;;
    tests) limited "$part" -m pytest -q -p no:cacheprovider tests/test_gpu.py -k the_gpu ;;
    unet_128_64px)
      throughput "$part" --model unet_128 --resolution 64 --batch-size 256 --steps 100 --repeats 1 --against tuned
      ;;
    unet_128_128px)
      throughput "$part" --model unet_128 --resolution 128 --batch-size 64 --steps 100 --repeats 1 --against tuned
      ;;
    unet_32_32px)
      throughput "$part" --model unet_32 --resolution 32 --batch-size 512 --steps 100 --repeats 1 --against tuned
      ;;
    flowers_64)
      # As ddpm-ema-flowers-64 was trained: 4 GPUs had 16 images each.
      throughput "$part" --model unet_128 --resolution 64 --batch-size 64 --steps 1000 --repeats 1 --against
      ;;
    checkpoint) limited "$part" benchmarks/checkpoint.py --saves 3 "${tiny_saves[@]}" ;;
    deterministic) deterministic "$part" -- train.compile=false ;;
    deterministic_compiled) deterministic "$part" --kinds deterministic -- "$compiled" ;;
    sampling)
      limited "$part" benchmarks/sampling.py --model unet_32 --resolution 32 --images 64 --repeats 3 "${tiny_images[@]}"
      ;;
    compiling)
      limited "$part" benchmarks/compiling.py --model unet_32 --resolution 32 --batch-size 128 "${tiny_network[@]}"
      ;;
    startup) limited "$part" benchmarks/startup.py --runs 1 --warm ;;
    *)
      echo "no such part: $part" >&2
      failed+=("$part")
      ;;
  esac
done

printf '\n== goals (%s)\n' "$folder"
"$python" benchmarks/goals.py "$folder"
printf '\n%s seconds; failed: %s\n' "$SECONDS" "${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
