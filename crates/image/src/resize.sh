#!/bin/sh
# Asks the terminal at the other end of the serial line for its size (a line has no window of its own):
# the cursor is sent to the far corner and its position read back, ESC [ ROWS ; COLS R.
old=$(stty -g) || exit
stty raw -echo min 0 time 10
printf '\0337\033[999;999H\033[6n\0338'
IFS='[;' read -r -d R escape rows cols
stty "$old"
case "$rows,$cols" in
,* | *, | *[!0-9,]*)
	echo "resize: the terminal does not answer" >&2
	exit 1
	;;
esac
stty rows "$rows" cols "$cols"
