#!/bin/sh
# phone_root.sh FOLDER COMMAND...: runs a command where /data, /sdcard, /sys and parts of /proc are those of a phone's folder.
# To be run in a mount namespace of its own: unshare --mount --map-root-user.
set -e
phone=$1
shift
new=$phone/root
mkdir -p "$new"
mount -t tmpfs none "$new"
for d in /*; do
    case $d in /data | /sdcard | /sys) continue ;; esac
    if [ -L "$d" ]; then
        cp -P "$d" "$new$d"
    elif [ -d "$d" ]; then
        mkdir "$new$d"
        mount --rbind "$d" "$new$d"
    fi
done
for d in data sdcard sys; do
    mkdir "$new/$d"
    mount --bind "$phone/$d" "$new/$d"
done
for f in "$phone"/proc/*; do
    mount --bind "$f" "$new/proc/${f##*/}"
done
exec chroot "$new" "$@"
