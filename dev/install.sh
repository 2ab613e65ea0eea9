#!/bin/sh
# Installs the Debian or Ubuntu packages named as arguments, as root or by sudo, so that none of their services is started,
# enabled for the next boot, or given a cluster on a default port.
#
# It is a process of its own, in one piece: whatever ends the caller, it finishes or cleans up after itself.
set -eu

if ! command -v apt-get >/dev/null; then
    echo "Sendoff needs $*, and there is no apt to install them: use this machine's own package manager." >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null; then exec sudo sh "$0" "$@"; fi
    echo "Installing $* needs root and there is no sudo: as root, run apt-get install $*" >&2
    exit 1
fi
echo "installing $* (their system services stay off)" >&2

policy=/usr/sbin/policy-rc.d
no_cluster=/etc/postgresql-common/createcluster.d/sendoff-install.conf
mark='# Written by dev/install.sh for the process'

clean_up() {
    if grep -qsx "$mark $$" "$policy"; then rm -f "$policy"; fi
    rm -f "$no_cluster"
    rmdir "${no_cluster%/*}" 2>/dev/null || true
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# One left by an installation that was killed outright permits everything once its writer is gone.
if grep -qs "^$mark" "$policy"; then rm -f "$policy"; fi
if [ -e "$policy" ]; then
    verdict=0
    "$policy" rabbitmq-server start >/dev/null 2>&1 || verdict=$?
    if [ "$verdict" -ne 101 ]; then
        echo "The $policy of this machine lets new packages start their services, so nothing was installed." >&2
        echo "Install these packages yourself, then try again: $*" >&2
        exit 1
    fi
else
    cat >"$policy" <<END
#!/bin/sh
$mark $$
[ -d /proc/$$ ] || exit 0
case "\$1" in rabbitmq-server*|postgresql*|epmd*) exit 101 ;; esac
exit 0
END
    chmod 755 "$policy"
fi

# Debian's postgresql would create a cluster for port 5432.
mkdir -p "${no_cluster%/*}"
echo 'create_main_cluster = false' >"$no_cluster"

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 "$@" >&2 </dev/null
}
apt_get update || echo "Not every package list could be refreshed; trying with what is there." >&2
apt_get install --no-install-recommends "$@"

for package in "$@"; do
    case "$package" in
    rabbitmq-server) services='rabbitmq-server epmd.socket epmd.service' ;;
    postgresql) services='postgresql' ;;
    *) continue ;;
    esac
    for service in $services; do
        if command -v systemctl >/dev/null; then
            systemctl disable "$service" >/dev/null 2>&1 || true
        else
            update-rc.d "$service" disable >/dev/null 2>&1 || true
        fi
    done
done
