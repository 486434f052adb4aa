#!/bin/busybox sh
# The session: what runs in the guest once its files are there. Everything that this script itself
# calls is busybox's: of the root file system only the shell is used, and whatever that starts.
if [ -d /run/mimeo ]; then M=/run/mimeo B=/run/mimeo/busybox; else M=/mimeo B=/bin/busybox; fi
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin M B
if [ $M = /run/mimeo ]; then
	for dir in dev/pts dev/shm tmp mnt/host root etc usr/local/sbin; do [ -d /$dir ] || $B mkdir -p /$dir; done
	$B mount -t tmpfs -o nosuid,nodev tmpfs /tmp
	echo "$HOST" >/etc/hostname
	printf '127.0.0.1 localhost %s\n::1 localhost\n' "$HOST" >/etc/hosts
	# Who has no init has these from nowhere else.
	for name in poweroff halt reboot; do
		command -v $name >/dev/null || $B ln -sf $B /usr/local/sbin/$name
	done
fi
# The power button.
[ -c /dev/input/event0 ] && $B acpid -c $M/acpi
[ -c /dev/vsock ] && [ -x $M/mimeo-agent ] && $M/mimeo-agent </dev/null >/dev/null 2>&1 &
# The first network card: addresses by router advertisement (at once: nobody else can have ours) and by
# DHCP, which goes on in the background where nobody answers.
if [ -e /sys/class/net/eth0 ]; then
	for set in dad_transmits router_solicitation_delay; do
		echo 0 >/proc/sys/net/ipv6/conf/eth0/$set
	done 2>/dev/null
	$B ip link set eth0 up
	$B modprobe -q af_packet 2>/dev/null
	$B udhcpc -i eth0 -b -t 3 -T 1 -s $M/udhcpc.sh >/dev/null 2>&1
fi
# After the card: the kernel looks at links once a second, and IPv6 waits for that.
$B ip link set lo up 2>/dev/null

# The host's folder, where there is one.
case " $($B cat /proc/cmdline) " in
*" mimeo.share "*) $B mkdir -p /mnt/host && $B mount -t virtiofs host /mnt/host ;;
esac

tty=/dev/$($B sed 's/.* //' /sys/class/tty/console/active)
[ -c "$tty" ] || tty=/dev/console
[ -n "$COLS" ] && $B stty cols "$COLS" <"$tty"
[ -n "$ROWS" ] && $B stty rows "$ROWS" <"$tty"

# `poweroff`, `halt` and `reboot` without -f send these to process 1.
end() {
	trap '' USR1 USR2 TERM
	$B sync
	$B umount -a -r 2>/dev/null
	$B "$1" -f
}
trap 'end halt' USR1
trap 'end poweroff' USR2
trap 'end reboot' TERM

export HOME=/root
cd /root
if [ -n "$SCRIPT" ]; then
	# Through a pipe, so that the shell sees no terminal to be interactive on.
	$B setsid -c sh -c 'unset SCRIPT COLS ROWS HOST M B; sh 2>&1 | cat' <"$tty" >"$tty" 2>&1 &
else
	shell='sh -l'
	[ -x /bin/bash ] && shell='bash -l'
	[ $M = /mimeo ] && export ENV=/etc/profile PS1='\u@\h:\w\$ '
	# Background jobs ignore the interrupt key unless that is undone.
	$M/undo-ignore $B setsid -c sh -c "unset SCRIPT COLS ROWS HOST M B; exec $shell" <"$tty" >"$tty" 2>&1 &
fi
shell=$!
while kill -0 "$shell" 2>/dev/null; do wait "$shell"; done
end poweroff
