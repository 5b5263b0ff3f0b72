// Verifies webhooks of Dealix. Node.js 18 or newer, nothing else.
import { createHmac, timingSafeEqual } from "node:crypto";

const TOLERANCE_S = 300;

// The event in a request. Throws unless it is genuine and at most five minutes old.
// body: the raw bytes (a Buffer), before anything parses them. signature: the header Dealix-Signature, undefined where
// it is missing. secret: all of it, whsec_ included.
export function verify(body, signature, secret) {
  if (!secret) throw new Error("no secret is configured");
  const fields = (signature ?? "").split(",").map((part) => part.trim().split("="));
  const t = fields.find(([name]) => name === "t")?.[1] ?? "";
  if (!/^[0-9]+$/.test(t) || Math.abs(Date.now() / 1000 - Number(t)) > TOLERANCE_S) {
    throw new Error("the signature's time is missing or more than five minutes away");
  }
  const expected = Buffer.from(createHmac("sha256", secret).update(`${t}.`).update(body).digest("hex"));
  const fits = (value) => {
    const given = Buffer.from(value ?? "");
    return given.length === expected.length && timingSafeEqual(given, expected);
  };
  // While a secret is being rotated there are two v1: one that fits is enough.
  if (!fields.some(([name, value]) => name === "v1" && fits(value))) throw new Error("no signature fits");
  return JSON.parse(body);
}
