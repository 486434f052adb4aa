#!/bin/sh
# Called by busybox's udhcpc: the address, the route and the name servers that DHCP gave.
case $1 in
deconfig)
	ip -4 addr flush dev "$interface"
	ip link set "$interface" up
	;;
bound | renew)
	ip -4 addr flush dev "$interface"
	[ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
	ip addr add "$ip/${mask:-24}" broadcast + dev "$interface"
	for r in $router; do
		ip route replace default via "$r" dev "$interface"
		break
	done
	for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
	;;
esac
