#!/bin/sh
# Runs the tests in a root of another release of Debian, with its RabbitMQ, Postgres and Python:
#
#     dev/other_debian.sh trixie [ARGUMENTS OF PYTEST…]
#
# The root is made once, by debootstrap, and kept in /var/tmp (SENDOFF_DEV_ROOTS); it needs root, a mirror of Debian and 2 GB.
# What is tested is a copy of the files that git knows, as they are now. Mounts end with the command, in a namespace of its own.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
release=${1:?name a release, such as trixie}
shift
root=${SENDOFF_DEV_ROOTS:-/var/tmp}/sendoff-root-$release
mirror=${SENDOFF_DEV_MIRROR:-} # empty: the one that debootstrap knows
packages='python3 python3-venv make git ca-certificates procps rabbitmq-server postgresql postgresql-contrib pgbouncer openssl'

if [ "$(id -u)" -ne 0 ]; then
    echo "A root of $release is made and entered as root." >&2
    exit 1
fi

if [ ! -e "$root/.made" ]; then
    command -v debootstrap >/dev/null || sh "$here/dev/install.sh" debootstrap
    rm -rf "$root"
    debootstrap --variant=minbase "$release" "$root" ${mirror:+"$mirror"} >&2
    # Nothing that is installed in there is started, nor given a cluster on a default port.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    mkdir -p "$root/etc/postgresql-common/createcluster.d"
    echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.d/sendoff.conf"
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    # shellcheck disable=SC2086 # they are words
    unshare --mount --pid --fork --kill-child sh -ec '
        mount -t proc proc "$0/proc"
        root=$0
        chroot "$root" apt-get -q update >&2
        DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -q -y --no-install-recommends install "$@" >&2
    ' "$root" $packages
    touch "$root/.made"
fi

cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
# The certificates that this machine trusts, also the one of its own proxy; pip reads where they are from the environment.
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
mkdir -p "$root/sendoff"
# The environment of the last run stays: it is brought up to date by make.
find "$root/sendoff" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
git -C "$here" ls-files -z | tar -C "$here" --null --files-from=- --create | tar -C "$root/sendoff" --extract --no-same-owner
# The servers of the tests end with the namespace, whatever ends this command.
exec unshare --mount --pid --fork --kill-child sh -ec '
    root=$0
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t sysfs sysfs "$root/sys"
    exec chroot "$root" env HOME=/root LC_ALL=C.UTF-8 sh -ec "
        cd /sendoff
        python3 --version
        make venv
        exec python3 dev/servers.py run -- .venv/bin/pytest -q \"\$@\"
    " sh "$@"
' "$root" "$@"
