// Package dealix verifies webhooks of Dealix. Go 1.18 or newer, nothing else.
package dealix

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"
)

const toleranceS = 300

// Verify returns an error unless a request is genuine and at most five minutes old.
//
// body: the raw bytes, before anything parses them. signature: the header Dealix-Signature, "" where it is missing.
// secret: all of it, whsec_ included.
func Verify(body []byte, signature, secret string) error {
	if secret == "" {
		return errors.New("no secret is configured")
	}
	t := ""
	var candidates []string
	for _, part := range strings.Split(signature, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if name == "t" && t == "" {
			t = value
		} else if name == "v1" {
			candidates = append(candidates, value)
		}
	}
	sent, err := strconv.ParseInt(t, 10, 64)
	age := time.Now().Unix() - sent
	if err != nil || age > toleranceS || age < -toleranceS {
		return errors.New("the signature's time is missing or more than five minutes away")
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(t + "."))
	mac.Write(body)
	expected := []byte(hex.EncodeToString(mac.Sum(nil)))
	// While a secret is being rotated there are two v1: one that fits is enough.
	for _, candidate := range candidates {
		if hmac.Equal([]byte(candidate), expected) {
			return nil
		}
	}
	return errors.New("no signature fits")
}
