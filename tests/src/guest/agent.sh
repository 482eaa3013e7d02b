# Serves commands on the console, one at a time. Each line from the host is one of
#   w BASE64    append to the command being written
#   x ID BYTES  run it; answer "@gp out ID BASE64" lines, then "@gp end ID STATUS LINES"; or, if
#               the command has another length, answer "@gp lost ID"
# Base64 keeps output apart from whatever else the console shows.
dmesg -n 1 2>/dev/null
stty raw -echo
mkdir -p /run/gp
: >/run/gp/command
trap '' INT TERM HUP
echo "@gp ready"
while IFS=' ' read -r verb argument; do
    case "$verb" in
    w)
        echo "$argument" | base64 -d >>/run/gp/command
        ;;
    x)
        bytes=${argument#* }
        argument=${argument%% *}
        # An emulated serial line under load can lose characters.
        if [ "$(wc -c </run/gp/command)" != "$bytes" ]; then
            : >/run/gp/command
            echo "@gp lost $argument"
            continue
        fi
        sh /run/gp/command </dev/null >/run/gp/output 2>&1
        status=$?
        base64 /run/gp/output >/run/gp/encoded
        sed "s/^/@gp out $argument /" /run/gp/encoded
        echo "@gp end $argument $status $(wc -l </run/gp/encoded)"
        : >/run/gp/command
        ;;
    esac
done
