#!/bin/sh
# Runs the example: the body on standard input, the header as argument if there is one.
cat >body.json
if reason=$(sh ./verify.sh body.json ${1+"$1"} 2>&1); then
  echo "accepted $(sed -n 's/.*,"id":"\([^"]*\)".*/\1/p' body.json)"
else
  echo "refused: $reason" >&2
  exit 1
fi
