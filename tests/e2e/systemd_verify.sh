#!/bin/sh
# Goal: systemd understands the units, they lock the daemon in, and the example configuration names
# every key the daemon has, at its default.
# Method: systemd-analyze verify and security on the generated units in a root of their own, with
# stand-ins for the programs; dsd --check-config on the example with every comment taken away.
# usage: tests/e2e/systemd_verify.sh BUILD
set -eu
build=${1:-build}
cd "$(dirname "$0")/../.."
command -v systemd-analyze >/dev/null || { echo "skip: systemd-analyze is missing"; exit 77; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "$1"; exit 1; }

# --- the units, as installed ---
for folder in system user; do
    mkdir -p "$work/$folder"
    [ "$folder" = system ] && from=$build/systemd || from=$build/systemd/user
    for unit in dsd.socket dsd.service; do
        [ -f "$from/$unit" ] || fail "$from/$unit has not been generated: make all"
        grep -q '@[a-z]*@' "$from/$unit" && fail "$from/$unit: a placeholder was left"
        # a path that exists instead of the one the package will have
        sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' "$from/$unit" >"$work/$folder/$unit"
    done
done
# verify also reads units of this machine that ours refer to; only what it says of ours counts.
verify() {
    systemd-analyze "$@" >"$work/said" 2>&1 || true
    if grep -E 'dsd\.(socket|service)' "$work/said" | grep -vE 'man:|Failed to (connect|create bus)'; then
        fail "systemd-analyze $1 complains about the lines above"
    fi
}
verify verify --man=no "$work/system/dsd.socket" "$work/system/dsd.service"
verify verify --man=no --user "$work/user/dsd.socket" "$work/user/dsd.service"

# The check above must be able to fail.
sed 's|^Type=notify$|Type=nonsense|' "$work/system/dsd.service" >"$work/broken.service"
systemd-analyze verify --man=no "$work/broken.service" >"$work/said" 2>&1 || true
grep -qi 'broken\.service.*service type' "$work/said" || fail "a broken unit went unnoticed: $(cat "$work/said")"

# --- how exposed the service is: 0 is best, 10 worst ---
threshold=15 # in tenths
systemd-analyze security --no-pager --offline=true --threshold=$threshold "$work/system/dsd.service" \
    >"$work/security" 2>&1 || { tail -n 5 "$work/security"; fail "exposure above $threshold tenths"; }
tail -n 1 "$work/security"

# --- the example configuration ---
[ -x "$build/dsd" ] || fail "$build/dsd is missing"
sed -n 's/^#\([a-z_]* =.*\)$/\1/p; /^\[/p' systemd/dsd.conf >"$work/all.conf"
"$build/dsd" --check-config --config "$work/all.conf" >"$work/said_all" 2>&1 ||
    { cat "$work/said_all"; fail "the example's defaults are refused"; }
"$build/dsd" --check-config --config /dev/null >"$work/said_none" 2>&1
# socket and models depend on who runs dsd; everything else must be what it is without a file
for said in all none; do
    grep -E '^[[:space:]]*[a-z_]+ = ?' "$work/said_$said" | sed 's/^[[:space:]]*//; s/[[:space:]]*#.*$//' |
        grep -vE '^(socket|models) ' >"$work/keys_$said" || true
done
[ -s "$work/keys_none" ] || fail "dsd --check-config prints no keys"
diff "$work/keys_all" "$work/keys_none" || fail "the example differs from the defaults"
while read -r key rest; do
    grep -q "^#$key =" systemd/dsd.conf || fail "dsd.conf does not mention $key"
done <"$work/keys_none"
echo "units verified; $(wc -l <"$work/keys_none") keys agree with the example"
