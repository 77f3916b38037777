# What a host still has of the server with the state directory $STATE, a line for each.
state=$(readlink -f "$STATE" || echo "$STATE")
instance=$(printf %s "$state" | sha256sum | cut -c 1-6)
each() { sed "s|^|$1 |"; }
ls -d /run/netns/coracle-"$instance"-* 2>/dev/null | each netns
nft list tables | grep "coracle_$instance" | each nft
ip -o link | grep "crcl-$instance" | each link
ls -d /sys/fs/cgroup/coracle-"$instance"/*/ /sys/fs/cgroup/*/coracle-"$instance"/*/ \
  /sys/fs/cgroup/*/*/coracle-"$instance"/*/ 2>/dev/null | each cgroup
grep -F "$state" /proc/self/mountinfo | each mount
losetup -a | grep -F "$state" | each loop
# Not its own command line, nor that of another whose state directory's name goes on.
pattern="${state%?}[${state#"${state%?}"}](/| |\$)"
for file in $(grep -lszE "$pattern" /proc/[0-9]*/cmdline); do
  echo "process $(dirname "$file"): $(tr '\0' ' ' <"$file")"
done
