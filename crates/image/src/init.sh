#!/bin/busybox sh
# The first process: mounts, parameters, drivers; then the session, here or in a root file system.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
/bin/busybox mount -t proc -o nosuid,nodev,noexec proc /proc
# mimeo.script: nobody types, so no prompt, no echo (before input can come), and output as it is.
case " $(/bin/busybox cat /proc/cmdline) " in
*" mimeo.script "*) SCRIPT=1; /bin/busybox stty -echo -onlcr </dev/console ;;
*) SCRIPT= ;;
esac
/bin/busybox --install -s
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount -t devtmpfs -o nosuid,mode=755 devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o nosuid,noexec,gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev shm /dev/shm
mount -t tmpfs -o nosuid,nodev tmpfs /run
mount -t tmpfs -o nosuid,nodev tmpfs /tmp
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/mounts /etc/mtab

# Kernel parameters: mimeo.term=, mimeo.cols=, mimeo.rows=, mimeo.hostname=, mimeo.modules=a,b,
# mimeo.root=vda (a disk with a root file system), mimeo.init=FILE (its own first process).
TERM=vt100 COLS= ROWS= HOST=debian MODULES= ROOT= INIT=
for word in $(cat /proc/cmdline); do
	case $word in
	mimeo.term=*) TERM=${word#*=} ;;
	mimeo.cols=*) COLS=${word#*=} ;;
	mimeo.rows=*) ROWS=${word#*=} ;;
	mimeo.hostname=*) HOST=${word#*=} ;;
	mimeo.root=*) ROOT=${word#*=} ;;
	mimeo.init=*) INIT=${word#*=} ;;
	mimeo.modules=*) MODULES=$(echo "${word#*=}" | tr , ' ') ;;
	esac
done
hostname "$HOST"
for module in $MODULES; do modprobe -q "$module"; done
# Drivers for what is there: first the buses, then what is on them.
plug() {
	find /sys/devices -name modalias -exec cat {} + 2>/dev/null | sort -u | xargs modprobe -a -q -b 2>/dev/null
}
plug
plug
export SCRIPT TERM COLS ROWS HOST
if [ -n "$ROOT" ]; then
	mkdir -p /newroot
	mount -t ext4 -o noatime "/dev/$ROOT" /newroot || echo "mimeo: no root file system on $ROOT"
fi
if [ -x /newroot/bin/sh ]; then
	cp -a /mimeo /run/mimeo
	cp /bin/busybox /run/mimeo/busybox
	mkdir -p /newroot/proc /newroot/sys /newroot/dev /newroot/run
	for dir in proc sys dev run; do mount -o move "/$dir" "/newroot/$dir"; done
	if [ -n "$INIT" ]; then exec switch_root /newroot "$INIT"; fi
	exec switch_root /newroot /run/mimeo/busybox sh /run/mimeo/session.sh
fi
exec /bin/busybox sh /mimeo/session.sh
