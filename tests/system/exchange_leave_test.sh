#!/usr/bin/env bash
# exchange_leave_test.sh LAUNCH PROGRAM
#
# Two ranks; the last one hangs in MPI_Finalize(). The other one says so and
# ends: by itself, and soon after a SIGTERM.
set -uo pipefail
launch=$1 program=$2

fail() {
  echo "FAILED: $1"
  exit 1
}

check() {
  echo "$output"
  [[ $code =~ ^($1)$ ]] || fail "exit code $code instead of $1"
  grep -q "error: rank 0 on .* waits in phase \`finish\`" <<<"$output" ||
    fail "rank 0 said nothing"
}

output=$("$launch" -n 2 -- "$program" mpi leave 2 2>&1)
code=$?
check 1

log=$(mktemp)
"$launch" -n 2 -- "$program" mpi leave 50 >"$log" 2>&1 &
launched=$!
until grep -q '^rank 0 .*: ok$' "$log"; do
  kill -0 "$launched" 2>/dev/null || break
done
kill -TERM "$launched"
wait "$launched"
code=$?
output=$(cat "$log")
rm "$log"
check 143
