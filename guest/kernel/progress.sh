#!/bin/bash
# build.sh with a bar: progress.sh KIND. Prints what build.sh prints, ends as it ends.
#
# The bar is for people: where standard error is no terminal, or TERM is dumb, there is build.sh and nothing else. It has no colour.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$here/build.sh log=${XDG_CACHE_HOME:-$HOME/.cache}/rt/kernel/${1:-}.log
[ -t 2 ] && [ "${TERM:-dumb}" != dumb ] || exec "$build" "$@"

# draw: what is under way, how far it is where that is known, and for how long it has been.
draw() {
  local columns=${COLUMNS:-80} bar= done wide=24
  if [ -n "$total" ]; then
    done=$(grep -cE '^  (CC|AS|LD) ' "$log" 2>/dev/null || true)
    [ "${done:-0}" -lt "$total" ] || done=$total
    printf -v bar '%*s' $((done * wide / total)) ''
    printf -v bar ' [%-*s] %3d %%' $wide "${bar// /#}" $((done * 100 / total))
  fi
  printf -v bar '%s%s %d:%02d' "$stage" "$bar" $(((SECONDS - since) / 60)) $(((SECONDS - since) % 60))
  printf '\r%s\e[K' "${bar:0:columns}" >&2
}

# show: build.sh's words as they come, but for its count of objects; between them, once a second, the bar.
show() {
  local line stage= total= since=$SECONDS status
  while :; do
    status=0; IFS= read -r -t 1 line || status=$?
    if [ $status = 0 ]; then
      [[ $line != *" objects, "* ]] || continue
      printf '\r\e[K%s\n' "$line" >&2
      stage=${line#guest kernel: } stage=${stage% (log: *} since=$SECONDS total=
      [[ $stage != compiling ]] || total=$(sed -n 's/.* of about \([0-9]*\) objects.*/\1/p' "$build")
    elif [ $status -gt 128 ]; then
      [ -z "$stage" ] || draw
    else
      printf '\r\e[K' >&2
      return
    fi
  done
}

{ "$build" "$@" 2>&1 >&3 | show; } 3>&1
