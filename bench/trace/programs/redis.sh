#!/usr/bin/env bash
# Runs redis_commands.py against a redis server without persistence; only the server is recorded.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
folder=$(mktemp -d)
redis-server --port 0 --unixsocket "$folder/socket" --save "" >/dev/null &
server=$!
unset LD_PRELOAD
until redis-cli -s "$folder/socket" ping >/dev/null 2>&1; do :; done
python3 "$here/redis_commands.py" | redis-cli -s "$folder/socket" --pipe >/dev/null
redis-cli -s "$folder/socket" shutdown nosave
wait "$server"
rm -r "$folder"
