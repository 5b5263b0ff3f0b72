// Runs the example: the body on standard input, the header as argument if there is one.
import { readFileSync } from "node:fs";
import { verify } from "./verify.mjs";

let event;
try {
  event = verify(readFileSync(0), process.argv[2], process.env.DEALIX_WEBHOOK_SECRET);
} catch (refused) {
  if (refused.constructor !== Error) throw refused;
  console.error(`refused: ${refused.message}`);
  process.exit(1);
}
console.log("accepted", event.id);
