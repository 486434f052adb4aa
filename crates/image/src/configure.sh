#!/bin/sh
# In the new root: the packages' files are there, dpkg knows nothing yet. What debootstrap does: the
# few that others build on first, then all.
set -e
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C HOME=/root
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd /debs
# As in container images: no documentation, no translations.
mkdir -p /etc/dpkg/dpkg.cfg.d
for dir in doc man info locale lintian; do
	echo "path-exclude=/usr/share/$dir/*"
done >/etc/dpkg/dpkg.cfg.d/mimeo
echo 'path-include=/usr/share/doc/*/copyright' >>/etc/dpkg/dpkg.cfg.d/mimeo
[ -e /var/lib/dpkg/status ] || : >/var/lib/dpkg/status
install() {
	dpkg --force-depends --force-unsafe-io --force-confold --install "$@" </dev/null
}
install base-passwd_*.deb
install base-files_*.deb
install dpkg_*.deb
install *.deb
dpkg --configure -a </dev/null
dpkg --audit
