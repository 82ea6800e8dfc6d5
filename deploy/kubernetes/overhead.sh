#!/bin/bash
# Measures what a sandbox costs beyond its container: overhead.sh RT BUNDLE [HYPERVISOR]
#
# BUNDLE's process has to stay idle for a minute (sleep). Printed: what the host's processes of the sandbox hold (Pss), less what the guest
# counts for the container, in MiB, after half a minute; runtimeclass.yaml has these figures. Root only.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
rt=$1 bundle=$2 hypervisor=${3:-auto} id=overhead-$$
root=$(mktemp -d); trap '"$rt" --root "$root" delete --force "$id"; rmdir "$root"' EXIT
"$rt" --root "$root" --hypervisor "$hypervisor" run --detach -b "$bundle" "$id" </dev/null >/dev/null 2>&1
sleep 30
"$rt" --root "$root" stats --no-stream --format json "$id" |
  sed -E 's/.*"guest":\{[^}]*"memory_bytes":([0-9]+).*"host":\{[^}]*"memory_bytes":([0-9]+).*"host_cpu_percent":([0-9.]+).*/\1 \2 \3/' |
  awk '{ printf "memory %.1f MiB, of it %.1f on the host less %.1f of the container; processor %.2f %%\n", ($2 - $1) / 1048576, $2 / 1048576, $1 / 1048576, $3 }'
