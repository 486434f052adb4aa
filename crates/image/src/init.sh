#!/bin/busybox sh
# The quickstart image's first process: mounts, terminal, one shell; when it ends, power off.
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

# Kernel parameters: mimeo.term=, mimeo.cols=, mimeo.rows=, mimeo.hostname=, mimeo.modules=a,b.
TERM=vt100 COLS= ROWS= HOST=debian MODULES=
for word in $(cat /proc/cmdline); do
	case $word in
	mimeo.term=*) TERM=${word#*=} ;;
	mimeo.cols=*) COLS=${word#*=} ;;
	mimeo.rows=*) ROWS=${word#*=} ;;
	mimeo.hostname=*) HOST=${word#*=} ;;
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
# The power button.
[ -c /dev/input/event0 ] && acpid
[ -c /dev/vsock ] && [ -x /bin/mimeo-agent ] && /bin/mimeo-agent </dev/null >/dev/null 2>&1 &
# The first network card: addresses by router advertisement (at once: nobody else can have ours) and by
# DHCP, which goes on in the background where nobody answers.
if [ -e /sys/class/net/eth0 ]; then
	for set in dad_transmits router_solicitation_delay; do
		echo 0 >/proc/sys/net/ipv6/conf/eth0/$set
	done 2>/dev/null
	ip link set eth0 up
	modprobe -q af_packet 2>/dev/null
	udhcpc -i eth0 -b -t 3 -T 1 -s /etc/udhcpc.script >/dev/null 2>&1
fi
# After the card: the kernel looks at links once a second, and IPv6 waits for that.
ip link set lo up 2>/dev/null

tty=/dev/$(sed 's/.* //' /sys/class/tty/console/active)
[ -c "$tty" ] || tty=/dev/console
[ -n "$COLS" ] && stty cols "$COLS" <"$tty"
[ -n "$ROWS" ] && stty rows "$ROWS" <"$tty"

# `poweroff`, `halt` and `reboot` without -f send these to process 1.
end() {
	trap '' USR1 USR2 TERM
	sync
	umount -a -r 2>/dev/null
	"$1" -f
}
trap 'end halt' USR1
trap 'end poweroff' USR2
trap 'end reboot' TERM

export TERM HOME=/root
cd /root
if [ -n "$SCRIPT" ]; then
	# Through a pipe, so that the shell sees no terminal to be interactive on.
	setsid -c sh -c 'sh 2>&1 | cat' <"$tty" >"$tty" 2>&1 &
else
	export ENV=/etc/profile PS1='\u@\h:\w\$ '
	# Background jobs ignore the interrupt key unless that is undone.
	/bin/undo-ignore /bin/busybox setsid -c sh -l <"$tty" >"$tty" 2>&1 &
fi
shell=$!
while kill -0 "$shell" 2>/dev/null; do wait "$shell"; done
end poweroff
