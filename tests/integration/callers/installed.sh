#!/bin/bash
# make install and make uninstall, as a packager calls them: below a directory of their own.
. "$(dirname "$0")/lib.sh"

dest=$work/dest
files() { (cd "$dest" && find . ! -type d | sort); }
runs() { [[ $("$dest/usr/bin/rt" --version) == "rt version "* ]] && [[ $("$dest/usr/bin/kata-runtime" --version) == kata-runtime* ]]; }

check installed::make_install make -s install "DESTDIR=$dest" PREFIX=/usr
check installed::it_runs_by_its_names runs
check installed::pages_and_completions test -s "$dest/usr/share/man/man8/rt.8" -a -s "$dest/usr/share/bash-completion/completions/rt"
check installed::make_uninstall make -s uninstall "DESTDIR=$dest" PREFIX=/usr
check installed::no_file_is_left says "" files
summary
