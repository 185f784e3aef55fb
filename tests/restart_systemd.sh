#!/usr/bin/env bash
# What restart_systemd_test.cc has run in namespaces of its own: an instance of systemd, the daemon under it as
# the unit $UNIT says, and what happens to it. $SPANPOOL is the command. Prints a line at each step:
#
#   STEP: STATE KEPT RESTART_SAFE
#
# KEPT is 0, 3 for what belongs to the run directory, or "more": arenas come when they are needed.
set -euo pipefail
mount -t tmpfs tmpfs /run
# Without this folder systemd believes that the machine is another init's.
mkdir -p /run/systemd/system /run/user/systemd/user
export XDG_RUNTIME_DIR=/run/user HOME=/run/user
cp "$UNIT" /run/user/systemd/user/spanpoold.service
/lib/systemd/systemd --user --log-target=console >/run/systemd.log 2>&1 </dev/null &
until systemctl --user show-environment >/dev/null 2>&1; do
  kill -0 %1 2>/dev/null || { cat /run/systemd.log; exit 70; }
done

property() { systemctl --user show spanpoold --property "$1" --value; }

kept() {
  local count
  count=$(property NFileDescriptorStore)
  if ((count > 3)); then echo more; else echo "$count"; fi
}

say() {  # say STEP
  printf '%s: %s %s %s\n' "$1" "$(property ActiveState)" "$(kept)" \
    "$("$SPANPOOL" --target /run/spanpool --json status | grep -o '"restart_safe": [a-z]*')"
}

# Waits until another process than $pid serves, and lets $pid be that.
pid=
next_process() {
  local before=$pid
  until pid=$(cat /run/spanpool/lock 2>/dev/null) && [[ $pid != "$before" ]] &&
    "$SPANPOOL" --target /run/spanpool health >/dev/null 2>&1; do :; done
}

systemctl --user start spanpoold
next_process
say started
kill -KILL "$pid"
next_process
say killed
systemctl --user restart spanpoold
next_process
say restarted
kill -TERM "$pid" # by somebody else than systemd
next_process
say ended
systemctl --user stop spanpoold
printf 'stopped: %s %s, %s\n' "$(property ActiveState)" "$(kept)" "$(ls /run/spanpool)"
