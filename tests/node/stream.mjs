// The events of a stream, and the error that ended it if one did.
import fs from "node:fs";

import { answer, faultOf, given, newClient } from "./program.mjs";

const events = [];
const fault = await faultOf(async () => {
  const stream = await newClient().audio.transcriptions.create({
    file: fs.createReadStream(given.path),
    model: "demo",
    stream: true,
    ...given.options,
  });
  for await (const event of stream) {
    events.push(event);
  }
});
answer({ events, fault });
