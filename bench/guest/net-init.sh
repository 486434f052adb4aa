#!/bin/sh
# The first process of the network rows: card, address, workloads, power-off. Kernel parameters: addr=, peer=, secs=.
/bin/busybox --install -s /bin
mount -t proc proc /proc
for word in $(cat /proc/cmdline); do case $word in addr=*) addr=${word#*=} ;; peer=*) peer=${word#*=} ;; secs=*) secs=${word#*=} ;; esac; done
for round in 1 2; do for m in $(cat /modules/order); do insmod "/modules/$m" 2>/dev/null; done; done
ip link set lo up
ip addr add "$addr/24" dev eth0
ip link set eth0 up
echo INIT
ping -c 3 -i 0.2 "$peer" >/dev/null
for w in send recv rr; do echo "START net_$w"; netbench $w "$peer" 9009 "$secs"; done
echo ALLDONE
poweroff -f
