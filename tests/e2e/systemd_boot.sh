#!/bin/sh
# Goal: on a machine that runs systemd the installed daemon is started by its socket, reports READY,
# serves the members of its group and nobody else, survives being killed, and stops cleanly.
# Method: systemd itself boots in a container (systemd-nspawn) made of this machine's /usr, a fresh
# /etc and what `make install` installs; a unit in there asks the questions and writes the answers
# to a file.
# usage: tests/e2e/systemd_boot.sh BUILD
set -eu
build=${1:-build}
skip() { echo "skip: $1: the units are not booted"; exit 77; }
[ "$build" = build ] || skip "only the plain build is installed"
[ "$(id -u)" = 0 ] || skip "not root"
command -v systemd-nspawn >/dev/null || skip "systemd-nspawn is missing (package systemd-container)"
[ -x /usr/lib/systemd/systemd ] || [ -x /lib/systemd/systemd ] || skip "systemd is not installed"
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root stage=$work/stage
make --no-print-directory install DESTDIR="$stage" prefix=/usr/local >/dev/null

# --- a machine: this one's /usr, nothing else of it ---
for folder in etc/systemd/system etc/dsd var/lib var/tmp var/log run tmp proc sys dev usr out root; do
    mkdir -p "$root/$folder"
done
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$root/$folder"; done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf 'passwd: files\ngroup: files\n' >"$root/etc/nsswitch.conf"
printf 'ID=dsd-boot-test\n' >"$root/etc/os-release"
echo uninitialized >"$root/etc/machine-id"
cp /etc/ld.so.cache "$root/etc/"
[ ! -d /etc/alternatives ] || cp -a /etc/alternatives "$root/etc/"
printf '[dsd]\ndrain_sec = 5\n' >"$root/etc/dsd/dsd.conf"
mkdir "$root/etc/systemd/system/dsd.service.d"
printf '[Service]\nWatchdogSec=2\n' >"$root/etc/systemd/system/dsd.service.d/short.conf"
systemd-sysusers --root="$root" "$stage/usr/local/lib/sysusers.d/dsd.conf" 2>"$work/sysusers" ||
    skip "systemd-sysusers --root does not work here: $(tail -n 1 "$work/sysusers")"
grep -q '^dsd:' "$root/etc/passwd" || { echo "sysusers.conf made no user dsd"; exit 1; }

model=${XDG_CACHE_HOME:-$HOME/.cache}/dsd/models/SmolLM2-135M-Instruct.Q4_1.gguf
bind_model=
if [ -f "$model" ]; then
    mkdir -p "$root/var/lib/dsd/models"
    bind_model="--bind-ro=$model:/var/lib/dsd/models/smol.gguf"
    : >"$root/var/lib/dsd/models/smol.gguf"
else
    echo "note: the default model is not there: no answer is asked for"
fi

# --- what is asked in there ---
cat >"$root/out/probe.sh" <<'PROBE'
set -eu
fail() { echo "FAIL: $1"; systemctl status --no-pager dsd.socket dsd.service || true; journalctl --no-pager -n 40 -u dsd 2>/dev/null || true; exit 1; }
equal() { [ "$2" = "$3" ] || fail "$1: $2, expected $3"; }
state() { systemctl show -P ActiveState "$1"; }
dsctl=/usr/local/bin/dsctl
as_member() { setpriv --reuid=nobody --regid=nogroup --groups="$(getent group dsd | cut -d: -f3)" "$@"; }
as_stranger() { setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"; }

equal "dsd.socket" "$(state dsd.socket)" active
equal "dsd.service before anyone asked" "$(state dsd.service)" inactive
equal "mode of the socket" "$(stat -c '%a %U %G' /run/dsd/dsd.sock)" "660 root dsd"

$dsctl status || fail "root gets no answer"
equal "dsd.service after a request" "$(state dsd.service)" active
equal "its user" "$(stat -c %U "/proc/$(systemctl show -P MainPID dsd.service)")" dsd
[ -n "$(systemctl show -P StatusText dsd.service)" ] || fail "no STATUS= came from the daemon"
as_member $dsctl status >/dev/null || fail "a member of group dsd gets no answer"
if as_stranger $dsctl status >/dev/null 2>&1; then fail "a stranger got an answer"; fi
if [ -s /var/lib/dsd/models/smol.gguf ]; then
    as_member $dsctl run smol "Say hello." -n 8 || fail "no answer from the model"
fi

pid=$(systemctl show -P MainPID dsd.service)
systemctl reload dsd.service || fail "reload"
equal "its process after a reload" "$(systemctl show -P MainPID dsd.service)" "$pid"
$dsctl status >/dev/null || fail "no answer after a reload"

sleep 3 # longer than its watchdog waits: idle, it still has to say that it lives
equal "its process after an idle while" "$(systemctl show -P MainPID dsd.service)" "$pid"

kill -9 "$pid" # Restart=on-failure; whoever connects meanwhile waits in the socket
tries=0
until [ "$(systemctl show -P NRestarts dsd.service)" = 1 ] && [ "$(state dsd.service)" = active ]; do
    tries=$((tries + 1)); [ $tries -lt 600 ] || fail "it was not started again"
    sleep 0.1
done
$dsctl status >/dev/null || fail "no answer after a restart"

systemctl stop dsd.service || fail "stop"
equal "how it ended" "$(systemctl show -P Result dsd.service)" success
equal "dsd.service after a stop" "$(state dsd.service)" inactive
equal "dsd.socket after a stop" "$(state dsd.socket)" active
$dsctl status >/dev/null || fail "the socket does not start it again"
systemctl stop dsd.socket dsd.service || fail "stop of both"
[ ! -e /run/dsd/dsd.sock ] || fail "the socket was left behind"
echo PASS
PROBE
cat >"$root/etc/systemd/system/probe.service" <<'UNIT'
[Unit]
Wants=sysinit.target dsd.socket
After=sysinit.target dsd.socket
[Service]
Type=oneshot
TimeoutStartSec=150
ExecStart=/bin/sh -c 'exec /bin/sh /out/probe.sh >/out/result 2>&1'
ExecStopPost=/bin/systemctl --force --no-block poweroff
UNIT

# shellcheck disable=SC2086 # bind_model is one word or none
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout 180 systemd-nspawn --quiet -D "$root" --bind-ro=/usr \
    --bind-ro="$stage/usr/local:/usr/local" $bind_model --boot --register=no --keep-unit \
    --private-network --console=pipe -- --unit=probe.service --show-status=no \
    >"$work/console" 2>&1 </dev/null || true
[ -f "$root/out/result" ] || skip "the container does not boot here: $(tail -n 1 "$work/console")"
cat "$root/out/result"
[ "$(tail -n 1 "$root/out/result")" = PASS ]
