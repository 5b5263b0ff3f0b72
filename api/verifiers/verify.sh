#!/bin/sh
# Verifies a webhook of Dealix: verify.sh BODY_FILE SIGNATURE, with the whole secret, whsec_ included, in the variable
# DEALIX_WEBHOOK_SECRET. Ends with 0 if the request is genuine and at most five minutes old, with 1 otherwise.
# Needs openssl, in whose arguments other users of the machine can see the secret: for debugging, not for a server.
set -eu
tolerance_s=300

hmac() { # of standard input, with the key $1
  openssl dgst -sha256 -hmac "$1" -r | cut -d ' ' -f 1
}

refuse() {
  echo "$1" >&2
  exit 1
}

[ -n "${DEALIX_WEBHOOK_SECRET-}" ] || refuse "no secret is configured"
fields=$(printf '%s\n' "${2-}" | tr ',' '\n' | sed 's/^ *//')
t=$(printf '%s\n' "$fields" | sed -n 's/^t=//p' | head -n 1)
case $t in
  '' | 0* | *[!0-9]* | ????????????*) age=$((tolerance_s + 1)) ;; # no time of ours
  *) age=$(($(date +%s) - t)) ;;
esac
if [ "$age" -gt "$tolerance_s" ] || [ "$age" -lt "-$tolerance_s" ]; then
  refuse "the signature's time is missing or more than five minutes away"
fi

expected=$({ printf '%s.' "$t"; cat -- "$1"; } | hmac "$DEALIX_WEBHOOK_SECRET")
# Compared are the codes of both under a random key: how long that takes tells nothing about `expected`.
key=$(openssl rand -hex 32)
wanted=$(printf '%s' "$expected" | hmac "$key")
# While a secret is being rotated there are two v1: one that fits is enough.
for v1 in $(printf '%s\n' "$fields" | sed -n 's/^v1=\([0-9a-f]*\)$/\1/p'); do
  if [ "$(printf '%s' "$v1" | hmac "$key")" = "$wanted" ]; then
    exit 0
  fi
done
refuse "no signature fits"
