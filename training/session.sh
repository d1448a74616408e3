#!/usr/bin/env bash
# A session of training in the background, for machines where a command may take minutes only, and for files that
# came there in pieces.
#
#   training/session.sh start FOLDER GPUS FLAGS...    join pieces, start, return at once
#   training/session.sh wait FOLDER SECONDS COPY      wait so long at most; copy log and checkpoint to COPY
#
# FOLDER holds text.tsv.xz, kokoro.safetensors, voices.tgz and, from the second session on, checkpoint/. A large file
# may lie there as NAME.part.00, NAME.part.01 ..., in folders of any name; `split -d -b 20M NAME NAME.part.` makes
# them. A joined NAME.xz is unpacked. FLAGS are those of `python -m training session`; --steps must be that of all
# sessions. `wait` ends with status 0 when the session has ended well, 75 while it runs.
set -euo pipefail

DECOMPRESS='import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))'

join_pieces() {
  local folder=$1 first name
  while IFS= read -r first; do
    name=$(basename "${first%.part.00}")
    # Pieces of one file may have come in several folders.
    find "$folder" -name "$name.part.*" -printf '%f %p\n' | sort | cut -d' ' -f2- | xargs cat >"$folder/$name.joining"
    mv "$folder/$name.joining" "$folder/$name"
    if [[ $name == *.safetensors.xz ]]; then
      # By Python, which is there anyway: small images have no xz.
      python3 -c "$DECOMPRESS" "$folder/$name" "$folder/${name%.xz}"
      rm "$folder/$name"
    fi
  done < <(find "$folder" -name '*.part.00')
}

start() {
  local folder=$1 gpus=$2
  shift 2
  join_pieces "$folder"
  mkdir -p "$folder/speech"
  rm -f "$folder/status"
  local run=(python3 -m torch.distributed.run --standalone --nproc-per-node "$gpus")
  if [[ $gpus == 1 ]]; then
    run=(python3)
  fi
  local flags=(--text "$folder/text.tsv.xz" --synthesiser "$folder/kokoro.safetensors" --voices "$folder/voices.tgz"
    --speech "$folder/speech" --checkpoint "$folder/checkpoint" "$@")
  # A session of its own, so that it outlives the command that started it.
  # shellcheck disable=SC2016
  setsid nohup bash -c 'folder=$1; shift; "$@" >"$folder/log" 2>&1; echo $? >"$folder/status"' session \
    "$folder" "${run[@]}" -m training session "${flags[@]}" </dev/null >/dev/null 2>&1 &
  echo "started; training/session.sh wait $folder SECONDS COPY"
}

wait_for() {
  local folder=$1 seconds=$2 copy=$3 status
  timeout "$seconds" bash -c 'until [[ -f $1/status ]]; do sleep 1; done' wait "$folder" || true
  mkdir -p "$copy"
  cp "$folder/log" "$copy/log"
  tail -n 20 "$folder/log"
  if [[ ! -f $folder/status ]]; then
    echo "still running"
    return 75
  fi
  status=$(cat "$folder/status")
  if [[ $status == 0 ]]; then
    cp "$folder"/checkpoint/* "$copy/"
  fi
  return "$status"
}

case ${1:-} in
  start) shift && start "$@" ;;
  wait) shift && wait_for "$@" ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
