# Keeps one server: usage FOLDER COMMAND... Makes the folder, obeys orders on stdin, one a line, and answers each with
# one line. When stdin ends, the test process has dropped the server or died: kills the server, removes the folder.
# shellcheck disable=SC2086 # the list of process numbers is to be split
folder=$1
shift
server=
# A handler, so that no signal stops the keeper before its work is done; an ignored signal the server would inherit.
trap : HUP INT TERM PIPE

# Signals the server and its children: PostgreSQL's are sessions of their own, so no process group holds them all.
signal_all() {
    # Frozen, it has no more children meanwhile.
    kill -STOP "$server"
    all="$server $(cat "/proc/$server/task/$server/children")"
    kill "-$1" $all
}

mkdir -m 700 "$folder" && cd "$folder" || exit 1
exec 2>/dev/null # what follows is the shell's chatter about processes that were killed
echo ready
while read -r order signal; do
    case $order in
    start)
        "$@" </dev/null >>log 2>&1 &
        server=$!
        echo "$server"
        ;;
    ask)
        kill "-$signal" "$server"
        echo asked
        ;;
    force)
        signal_all "$signal"
        echo "$all"
        ;;
    reap) # only once it has ended
        wait "$server"
        echo $?
        server=
        ;;
    esac
done

[ -n "$server" ] && signal_all KILL && wait "$server"
# What a killed PostgreSQL leaves outside its folder: a segment of shared memory. The number stands in this file.
[ -e data/postmaster.pid ] && ipcrm --shmem-id "$(sed -n '7s/.* //p' data/postmaster.pid)"
cd /
# What a killed file system leaves.
umount -l "$folder/disk"
# A process that is just dying may still add a file.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$folder" && exit
    sleep 0.1
done
