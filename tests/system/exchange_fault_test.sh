#!/usr/bin/env bash
# exchange_fault_test.sh LAUNCH PROGRAM TRANSPORT PHASE ACTION
#
# Three ranks; the last one does ACTION as it enters PHASE (see
# mp/exchange_program.cc). Checks exit code and what every other rank says.
set -uo pipefail
launch=$1 program=$2 transport=$3 phase=$4 action=$5

fail() {
  echo "FAILED: $1"
  exit 1
}

output=$("$launch" -n 3 -- "$program" "$transport" fault "$phase" "$action" 2>&1)
code=$?
echo "$output"
echo "exit code $code"

# What is expected of ranks 0 and 1 (of rank 2 too where it lives on).
# A survivor that waits for the other one may be a phase behind.
case $phase in
  header) noticed_in='\(step_record\|header\)' ;;
  payload) noticed_in='\(header\|payload\)' ;;
  compute | combine) noticed_in='\(payload\|combine\)' ;;
  *) noticed_in=$phase ;;
esac
# mpirun gives the code of the first rank that it sees end; that may be a
# survivor, with 1.
case $action in
  kill) want_code="137|1" ranks="0 1"
    want="ABORTED: .*rank 2 on .* is lost .*phase \`$noticed_in\` of .*step 3" ;;
  exit) want_code="3|1" ranks="0 1"
    want="ABORTED: .*rank 2 on .* is lost .*phase \`$noticed_in\` of .*step 3" ;;
  torn) want_code="137|1" ranks="0 1"
    want="ABORTED: .*rank 2 on .* is lost .*phase \`\(header\|payload\|combine\)\` of layer 1, step 3" ;;
  fail) want_code=1 ranks="0 1"
    want="DATA_LOSS: rank 2 on .* failed in phase \`compute\` of layer 1, step 3" ;;
  numerics) want_code=1 ranks="0 1 2"
    want="FAILED_PRECONDITION: rank 2 on .* has another numerics (.*) than the others" ;;
  epoch) want_code=1 ranks="0 1 2"
    want="FAILED_PRECONDITION: rank 2 on .* has another job and restart than the others" ;;
  busy) want_code="137|1" ranks=1
    want="ABORTED: .*rank 2 on .* is lost .*phase \`$noticed_in\` of .*step 3" ;;
  halt) want_code=1 ranks="0 1"
    want="ABORTED: .*rank 2 on .* is lost (no sign of life for 2s).*phase \`$noticed_in\` of .*step 3" ;;
  late) want_code=1 ranks="0 1"
    want="DEADLINE_EXCEEDED: .*rank 2 on .* slow.*phase \`$noticed_in\` of .*step 3" ;;
  stop | slow) want_code=0 ranks="0 1 2" want="ok$" ;;
  *) fail "unknown action $action" ;;
esac
[[ $code =~ ^($want_code)$ ]] || fail "exit code $code instead of $want_code"
acted=$(sed -n 's/^rank 2 acts at \([0-9]*\) ms.*/\1/p' <<<"$output" | head -1)
for rank in $ranks; do
  line=$(grep "^rank $rank ($transport) at" <<<"$output") ||
    fail "rank $rank said nothing"
  grep -q ": .*$want" <<<"$line" || fail "rank $rank said something else"
  [[ $action =~ ^(kill|torn|busy)$ ]] || continue
  ended=$(sed 's/.* at \([0-9]*\) ms.*/\1/' <<<"$line")
  [ $((ended - acted)) -lt 5000 ] ||
    fail "rank $rank needed $((ended - acted)) ms to notice"
done
if [ "$action" = busy ]; then
  # Rank 0 computes on; it is ended with an error before mpirun would kill it.
  grep -q "error: rank 2 on .* is lost (its process ended), noticed by rank 0 \
on .* too busy .*phase \`compute\` of layer 1, step 3" <<<"$output" ||
    fail "rank 0 said nothing"
fi
if pgrep -f "^$program $transport fault $phase $action\$" >/dev/null; then
  fail "a rank is still running"
fi
exit 0
