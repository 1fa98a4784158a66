#!/bin/busybox sh
# The guest's first process: makes what a node has at its boot, runs the test programs of /etc/tests, and powers off.
# xtask reads the lines that begin with "guest: " (kernels/guest.rs).
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/ RUST_TEST_THREADS=2

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# The first serial line is the kernel's own.
stty -F /dev/ttyS1 raw
exec </dev/null >/dev/ttyS1 2>&1

mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
while read -r module; do
    insmod "/modules/$module" || echo "guest: no $module"
done </etc/modules
ip link set lo up

echo "guest: Linux $(uname -r) is up after $(cut -d ' ' -f 1 /proc/uptime) s"
while read -r name filters; do
    # The filters are words.
    # shellcheck disable=SC2086
    "/nodemesh/$name" $filters
    echo "guest: $name ended with $?"
done </etc/tests
echo "guest: done after $(cut -d ' ' -f 1 /proc/uptime) s"
poweroff -f
