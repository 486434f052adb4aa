#!/bin/busybox sh
# Makes a root file system out of packages, in a guest of its own: vda is an empty ext4 file system,
# mounted on /newroot with the packages' files and the packages (/newroot/debs) in it already.
# Lines that begin with @ are for who started this.
set -e
trap '[ $? = 0 ] || echo "@failed"' EXIT
root=/newroot
for dir in proc sys dev dev/pts run tmp; do
	mkdir -p $root/$dir
done
for dir in proc sys dev dev/pts; do mount -o bind /$dir $root/$dir; done
mount -t tmpfs tmpfs $root/run
# No services are started while packages are configured.
printf '#!/bin/sh\nexit 101\n' >$root/usr/sbin/policy-rc.d
chmod 755 $root/usr/sbin/policy-rc.d
chroot $root /bin/sh /debs/configure.sh
rm -f $root/usr/sbin/policy-rc.d
mkdir -p $root/etc/apt
cp -R $root/debs/apt/. $root/etc/apt/
echo '/dev/vda / ext4 noatime 0 1' >$root/etc/fstab
rm -rf $root/debs $root/var/cache/apt/archives/*.deb
: >$root/etc/machine-id
for dir in dev/pts dev sys proc run; do umount $root/$dir; done
sync
umount $root
echo "@installed"
