#!/bin/bash
# Runs the scripts beside it, or those that are named, and says at the end how many checks passed and failed. A script of which something
# fails runs once more: they wait for daemons, on machines that others use.
set -uo pipefail
cd "$(dirname "$0")"
passed=0 failed=0
for caller in "${@:-conmon podman containerd shim crash cri docker node elsewhere installed}"; do
  for name in $caller; do
    for try in '' ', once more'; do
      echo "== $name$try"
      output=$("./$name.sh" 2>&1 | tee -a /dev/stderr)
      p= f=
      read -r p f < <(sed -nE 's/.*test result: .* ([0-9]+) passed; ([0-9]+) failed.*/\1 \2/p' <<<"$output")
      # A script without a closing line did not get to its end.
      [ "${f:-1}" -gt 0 ] || break
    done
    passed=$((passed + ${p:-0})) failed=$((failed + ${f:-1}))
  done
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
