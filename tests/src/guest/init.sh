#!/bin/busybox sh
# shellcheck shell=dash
# The guest's first process. What it does is told on the kernel command line:
#   gangplank=agent              serve commands on the console
#   gangplank=shell              mount gangplank.tag on /mnt, give the console to a person
#   gangplank=root               make the share gangplank.tag the root file system, then serve
#   gangplank=nfsroot            the same with the NFS export gangplank.tag, as gangplank.address
#   gangplank=systemd            make the first disk the root file system, and run its systemd
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=linux
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
hostname gangplank-guest
for module in /modules/*.ko; do
    [ -e "$module" ] && insmod "$module"
done

mode=agent
tag=
address=
# shellcheck disable=SC2013 # words are what it consists of
for word in $(cat /proc/cmdline); do
    case "$word" in
    gangplank=*) mode=${word#*=} ;;
    gangplank.tag=*) tag=${word#*=} ;;
    gangplank.address=*) address=${word#*=} ;;
    esac
done

case "$mode" in
shell)
    mount -t virtiofs "$tag" /mnt || echo "mounting $tag failed"
    cat /banner 2>/dev/null
    cd /mnt || cd /
    setsid cttyhack sh
    cd /
    umount /mnt
    poweroff -f
    ;;
root | nfsroot | systemd)
    root="$tag"
    start="/bin/sh /gangplank-agent"
    if [ "$mode" = nfsroot ]; then
        for card in /sys/class/net/*; do
            card=${card##*/}
            [ "$card" = lo ] || break
        done
        ifconfig lo 127.0.0.1 up
        ifconfig "$card" "$address" netmask 255.255.255.0 up
        options="vers=3,proto=tcp,mountproto=tcp,nolock,addr=${tag%%:*}"
        mount -i -t nfs -o "$options" "$tag" /newroot
    elif [ "$mode" = systemd ]; then
        root=/dev/vda
        start=/lib/systemd/systemd
        mount -t ext4 "$root" /newroot
    else
        mount -t virtiofs "$tag" /newroot
    fi
    # shellcheck disable=SC2181 # of either mount
    if [ $? = 0 ]; then
        for name in dev proc sys run; do
            mkdir -p "/newroot/$name"
            mount --move "/$name" "/newroot/$name"
        done
        # shellcheck disable=SC2086 # a command line
        exec switch_root -c /dev/console /newroot $start
    fi
    echo "no root file system on $root"
    exec sh /agent
    ;;
*)
    exec sh /agent
    ;;
esac
