#!/bin/sh
# Goal: make install puts everything where a packager expects it, what is installed runs, and make
# uninstall takes it all back.
# Method: install into an empty DESTDIR; list, run, uninstall, list again.
set -eu
build=${1:-build}
[ "$build" = build ] || { echo "skip: only the plain build is installed"; exit 77; }
cd "$(dirname "$0")/../.."
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
make --no-print-directory build/libds.pc build/systemd/dsd.service prefix=/elsewhere >/dev/null
make --no-print-directory install DESTDIR="$root" prefix=/usr >/dev/null
grep -rl '/elsewhere\|/usr/local' "$root/usr/lib" && { echo "the files above name another prefix"; exit 1; }
for file in usr/bin/dsd usr/bin/dsctl usr/libexec/dsd/dsd-engine usr/lib/libds.so.0 usr/lib/libds.so \
    usr/lib/pkgconfig/libds.pc usr/include/ds.h usr/share/dsd/ds.proto \
    usr/lib/systemd/system/dsd.socket usr/lib/systemd/system/dsd.service \
    usr/lib/systemd/user/dsd.socket usr/lib/systemd/user/dsd.service usr/lib/sysusers.d/dsd.conf \
    usr/lib/tmpfiles.d/dsd.conf usr/share/man/man8/dsd.8 usr/share/man/man1/dsctl.1 \
    usr/share/man/man5/dsd.conf.5 usr/share/man/man3/libds.3 usr/share/man/man7/dsd-protocol.7 \
    usr/share/man/man7/dsd-architecture.7 usr/share/man/man7/dsd-models.7 etc/dsd/dsd.conf.example; do
    [ -e "$root/$file" ] || { echo "not installed: $file"; exit 1; }
done
grep -rl '@[a-z]*dir@' "$root" && { echo "a placeholder was left in the files above"; exit 1; }
"$root/usr/bin/dsctl" --version
"$root/usr/bin/dsd" --version
"$root/usr/bin/dsd" --check-config --config "$root/etc/dsd/dsd.conf.example" >/dev/null
# A daemon that was installed finds its engine without being told.
socket=$root/dsd.sock
mkdir "$root/models"
"$root/usr/bin/dsd" --socket "$socket" --models "$root/models" --config /dev/null 2>"$root/log" &
daemon=$!
tries=0
until "$root/usr/bin/dsctl" --socket "$socket" status >"$root/status" 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { cat "$root/log"; echo "the installed dsd did not answer"; exit 1; }
    sleep 0.1
done
kill "$daemon"
wait "$daemon"
make --no-print-directory uninstall DESTDIR="$root" prefix=/usr >/dev/null
rm -rf "$root/models" "$root/log" "$root/status" "$socket"
left=$(find "$root" -type f -o -type l)
[ -z "$left" ] || { echo "left after uninstall:"; echo "$left"; exit 1; }
