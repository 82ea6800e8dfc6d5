#!/bin/bash
# Puts a built file where it is looked for: place.sh FILE AT. As a link where that can be; holes stay holes. A file that is
# in use is replaced, not written to.
set -euo pipefail
[ "$1" -ef "$2" ] && [ ! -L "$2" ] && exit
rm -f "$2.new"
ln "$1" "$2.new" 2>/dev/null || cp --sparse=always --preserve=mode "$1" "$2.new"
mv -f "$2.new" "$2"
rm -f "$2.new" # mv leaves it when both are links to one file
