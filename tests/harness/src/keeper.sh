# Keeps one server: usage FOLDER COMMAND... Makes the folder, obeys orders on stdin, one a line, and answers each with
# one line. When stdin ends, the test process has dropped the server or died: kills the server, removes the folder.
# shellcheck disable=SC2046,SC2086 # the lists of process numbers are to be split
folder=$1
shift
server=
umask 077
# A handler, so that no signal stops the keeper before its work is done; an ignored signal the server would inherit.
trap : HUP INT TERM PIPE

# The server and its children. PostgreSQL's are sessions of their own: no process group holds them all.
processes() {
    echo "$server" $(cat "/proc/$server/task/$server/children")
}

mkdir "$folder" && cd "$folder" || exit 1
exec 2>/dev/null # what follows is the shell's chatter about processes that were killed
echo ready
while read -r order signal; do
    case $order in
    start)
        "$@" </dev/null >>log 2>&1 &
        server=$!
        echo "$server"
        ;;
    ask) # the server alone
        kill "-$signal" "$server" && echo "$server"
        ;;
    force) # all its processes
        all=$(processes)
        kill "-$signal" $all
        echo "$all"
        ;;
    reap) # only once it has ended
        wait "$server"
        echo $?
        server=
        ;;
    esac
done

[ -n "$server" ] && kill -KILL $(processes) && wait "$server"
cd /
# A process that is just dying may still add a file.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$folder" && exit
    sleep 0.1
done
