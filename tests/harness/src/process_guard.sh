# Guards one process. Usage: FOLDER COMMAND... Creates the folder, then reads commands from stdin, one per line, and
# answers each with one line. At the end of stdin, the test process has dropped the process or ended: kills the process
# and removes the folder.
# shellcheck disable=SC2086 # the list of process IDs is to be split
folder=$1
shift
process=
# No signal may stop the guard before its work is done. A handler is needed, since the process would inherit an ignored
# signal.
trap : HUP INT TERM PIPE

# Signals the process and its children. PostgreSQL's children have sessions of their own, so no process group contains
# them all.
signal_all() {
    # A frozen process starts no more children.
    kill -STOP "$process"
    all="$process $(cat "/proc/$process/task/$process/children")"
    kill "-$1" $all
}

mkdir -m 700 "$folder" && cd "$folder" || exit 1
exec 2>/dev/null # hides the shell's messages about killed processes
echo ready
while read -r command signal; do
    case $command in
    start)
        "$@" </dev/null >>log 2>&1 &
        process=$!
        echo "$process"
        ;;
    signal)
        kill "-$signal" "$process"
        echo sent
        ;;
    signal_all)
        signal_all "$signal"
        echo "$all"
        ;;
    reap) # only after its end
        wait "$process"
        echo $?
        process=
        ;;
    esac
done

[ -n "$process" ] && signal_all KILL && wait "$process"
# A killed PostgreSQL leaves a segment of shared memory, whose ID is in this file.
[ -e data/postmaster.pid ] && ipcrm --shmem-id "$(sed -n '7s/.* //p' data/postmaster.pid)"
cd /
# A killed file system leaves its mount.
umount -l "$folder/disk"
# A process may still create a file while it ends.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$folder" && exit
    sleep 0.1
done
