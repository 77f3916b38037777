# What the emulated host's test scripts share: each test is a line `ok NAME` or `not ok NAME` with
# what it said, and the last line counts them.

passed=0
failed=0
check() { # NAME COMMAND...
  name=$1
  shift
  if "$@" >/run/out 2>&1; then
    echo "ok $name"
    passed=$((passed + 1))
  else
    echo "not ok $name"
    sed 's/^/    /' /run/out | tail -n "${SHOWN_LINES:-30}"
    failed=$((failed + 1))
  fi
}
finish() {
  echo "RESULT: $passed passed, $failed failed"
  exit
}
waits_for() { # SECONDS COMMAND...
  left=$(($1 * 5))
  shift
  until "$@"; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || return 1
    sleep 0.2
  done
}
