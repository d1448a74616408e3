#!/usr/bin/env bash
# A session of training in the background, for machines that are lent for minutes, that may be taken away at any
# moment, and to which files come in pieces.
#
#   training/session.sh pack FOLDER MEGABYTES OUT     one archive of FOLDER, in pieces OUT/00, OUT/01 ...
#   training/session.sh unpack FOLDER OUT             unpack pieces that lie anywhere under OUT
#   training/session.sh start FOLDER GPUS FLAGS...    start a session, return at once
#   training/session.sh wait FOLDER SECONDS COPY      wait so long at most; keep log and checkpoint in COPY
#
# FOLDER holds text.tsv.xz, kokoro.safetensors or its parts kokoro-1.bin ..., voices.safetensors, and if wanted
# wheels/ with packages to install and flite/ with a program `flite`. A session goes on from FOLDER/checkpoint, or
# from the newest checkpoint-* that lies under FOLDER. FLAGS are those of `python -m training session`. `wait` ends
# with status 0 when the session has ended well, 75 while it runs, and with the session's own if that failed. What
# it keeps in COPY is whole whenever it is stopped: at most eight files, each under 16 MiB.
set -euo pipefail

UNPACK='import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz").extractall(sys.argv[1], filter="data")'

pack() {
  local folder=$1 megabytes=$2 out=$3 piece
  mkdir -p "$out"
  tar -C "$folder" --sort=name -c . | xz -1 -T0 | split -d -b "${megabytes}MB" - "$out/pack."
  for piece in "$out"/pack.*; do
    mkdir "$out/${piece##*.}"
    mv "$piece" "$out/${piece##*.}/"
  done
  du -sb "$out"/*/
}

unpack() {
  local folder=$1 out=$2
  mkdir -p "$folder"
  # By Python, which is there anyway: small images have no xz.
  find "$out" -name 'pack.[0-9][0-9]' -printf '%f %p\n' | sort | cut -d' ' -f2- | xargs cat |
    python3 -c "$UNPACK" "$folder"
}

start() {
  local folder=$1 gpus=$2 newest
  shift 2
  if compgen -G "$folder/wheels/*.whl" >/dev/null; then
    python3 -m pip install -q --no-index --no-deps --target "$folder/site" "$folder"/wheels/*.whl
    export PYTHONPATH="$PWD:$folder/site"
  fi
  if [[ ! -f $folder/kokoro.safetensors ]]; then
    python3 -m training synthesiser "$folder"/kokoro-[1-9].bin --out "$folder/kokoro.safetensors"
  fi
  newest=$(find "$folder" -path '*/checkpoint-*/checkpoint.json' -printf '%h\n' |
    sed 's,^.*/checkpoint-\([0-9]*\)$,\1 &,' | sort -n | tail -n 1)
  if [[ ! -d $folder/checkpoint && -n $newest ]]; then
    cp -r "${newest#* }" "$folder/checkpoint"
  fi
  mkdir -p "$folder/speech"
  rm -f "$folder/status"
  local run=(python3 -m torch.distributed.run --standalone --nproc-per-node "$gpus")
  if [[ $gpus == 1 ]]; then
    run=(python3)
  fi
  local flags=(--text "$folder/text.tsv.xz" --synthesiser "$folder/kokoro.safetensors"
    --voices "$folder/voices.safetensors" --speech "$folder/speech" --checkpoint "$folder/checkpoint")
  if [[ -x $folder/flite/flite ]]; then
    flags+=(--flite "$folder/flite/flite")
  fi
  # A session of its own, so that it outlives the command that started it.
  # shellcheck disable=SC2016
  setsid nohup bash -c 'folder=$1; shift; "$@" >"$folder/log" 2>&1; echo $? >"$folder/status"' session \
    "$folder" "${run[@]}" -m training session "${flags[@]}" "$@" </dev/null >/dev/null 2>&1 &
  echo "started; training/session.sh wait $folder SECONDS COPY"
}

# The checkpoint of FOLDER as COPY/checkpoint-STEP. It appears whole, and the one before it stays until then.
keep() {
  local folder=$1 copy=$2 step old
  # A copy that is cut off must not leave half a log.
  cp "$folder/log" "$copy/log.partial" 2>/dev/null && mv "$copy/log.partial" "$copy/log"
  step=$(sed -n 's/.*"name": "state-\([0-9]*\)\.0".*/\1/p' "$folder/checkpoint/checkpoint.json" 2>/dev/null) || true
  if [[ -z $step || -d $copy/checkpoint-$step ]]; then
    return 0
  fi
  rm -rf "$copy/partial"
  mkdir "$copy/partial"
  # The next checkpoint may replace this one meanwhile; it is kept then, at the next look.
  cp "$folder/checkpoint/state-$step".* "$folder/checkpoint/checkpoint.json" "$copy/partial/" 2>/dev/null || return 0
  grep -q "state-$step" "$copy/partial/checkpoint.json" || return 0
  mv "$copy/partial" "$copy/checkpoint-$step"
  for old in "$copy"/checkpoint-*; do
    [[ $old == "$copy/checkpoint-$step" ]] || rm -r "$old"
  done
}

wait_for() {
  local folder=$1 seconds=$2 copy=$3 status
  mkdir -p "$copy"
  local ends=$((SECONDS + seconds))
  until [[ -f $folder/status ]] || ((SECONDS >= ends)); do
    keep "$folder" "$copy"
    sleep 1
  done
  keep "$folder" "$copy"
  rm -rf "$copy/partial" "$copy/log.partial"
  tail -n 20 "$folder/log"
  if [[ ! -f $folder/status ]]; then
    echo "still running"
    return 75
  fi
  status=$(cat "$folder/status")
  return "$status"
}

case ${1:-} in
  pack | unpack | start) "$@" ;;
  wait) shift && wait_for "$@" ;;
  *) sed -n '2,18s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
