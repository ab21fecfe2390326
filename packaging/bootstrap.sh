#!/bin/sh
# Brings a machine to where the project builds, tests and runs: Debian packages, a virtual environment, the build.
# Idempotent: what is there already is skipped. usage: bootstrap.sh [build|lab|dev|kernels]   (each includes the one before)
set -eu
cd "$(dirname "$0")/.."

want=${1:-build}
venv=.venv
build_packages="gcc libc6-dev python3-dev python3-venv clang llvm libbpf-dev libxdp-dev libelf-dev zlib1g-dev
    linux-libc-dev libxtables12 libip4tc2 libip6tc2 libxtables-dev iptables"
lab_packages="iproute2 bird2 nginx-light ethtool procps iputils-ping curl tcpdump iperf3"
dev_packages="tshark bpftool haproxy nftables"

packages=$build_packages
[ "$want" = build ] || packages="$packages $lab_packages"
case $want in dev | kernels) packages="$packages $dev_packages" ;; esac
[ "$want" = kernels ] && packages="$packages qemu-system-x86"

say() { printf 'glb: %s\n' "$*" >&2; }

missing=""
if command -v dpkg-query >/dev/null 2>&1; then
    for package in $packages; do
        status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || missing="$missing $package"
    done
    if [ -n "$missing" ]; then
        if [ "$(id -u)" != 0 ]; then
            say "these Debian packages are missing:$missing"
            say "install them as root: apt-get install$missing"
            exit 1
        fi
        say "installing Debian packages:$missing"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        # A service that a package brings (nginx, bird) is not wanted on the machine itself: the lab runs its own.
        printf '#!/bin/sh\nexit 101\n' > /tmp/glb-policy-rc.d && chmod +x /tmp/glb-policy-rc.d
        if [ -e /usr/sbin/policy-rc.d ]; then rm /tmp/glb-policy-rc.d; placed=no
        else mv /tmp/glb-policy-rc.d /usr/sbin/policy-rc.d; placed=yes; fi
        trap '[ "$placed" = yes ] && rm -f /usr/sbin/policy-rc.d' EXIT
        # shellcheck disable=SC2086  # a list of words
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
        [ "$placed" = yes ] && rm -f /usr/sbin/policy-rc.d
        trap - EXIT
    fi
else
    for program in gcc clang python3 iptables; do
        command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
    done
    [ "$want" = build ] || for program in ip bird nginx ethtool sysctl ping curl tcpdump; do
        command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
    done
    for header in bpf/libbpf.h xdp/xsk.h; do
        [ -e "/usr/include/$header" ] || missing="$missing $header"
    done
    if [ -n "$missing" ]; then
        say "this is not a Debian system, and these are missing:$missing"
        say "install what provides them (on Debian 12 they come from: $(echo $packages))"
        exit 1
    fi
fi

python=/usr/bin/python3
[ -x "$python" ] || python=$(command -v python3)
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "Python 3.11 or newer is needed; $python is $("$python" --version)"
    exit 1
fi
if [ ! -x $venv/bin/pip ]; then
    say "making the virtual environment $venv"
    "$python" -m venv $venv
fi

# Rebuilt when a source of the build is newer than the last build; `dev` adds the test tools once.
stamp=$venv/.built
newer=$( [ -e $stamp ] && find setup.py pyproject.toml bpf glb proxy_agent -newer $stamp \
    \( -name '*.pyx' -o -name "*.pxd" -o -name "*.h" -o -name '*.bpf.c' -o -name setup.py -o -name pyproject.toml \) \
    | head -n 1 || echo first )
if [ -n "$newer" ]; then
    say "building (about a minute the first time)"
    $venv/bin/pip install -q --upgrade 'setuptools>=68' wheel 'cython>=3.1'
    $venv/bin/pip install -q --no-build-isolation -e .
    touch $stamp
fi
if { [ "$want" = dev ] || [ "$want" = kernels ]; } && { [ ! -e $venv/.dev ] || [ pyproject.toml -nt $venv/.dev ]; }; then
    say "installing the test tools"
    $venv/bin/pip install -q --no-build-isolation -e '.[dev]'
    touch $venv/.dev $stamp
fi
