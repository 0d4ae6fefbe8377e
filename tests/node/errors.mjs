// One fault of each kind, as the SDK raises it.
import fs from "node:fs";

import { answer, faultOf, given, newClient } from "./program.mjs";

const client = newClient();
const limited = newClient({ baseURL: given.limitedURL });
const locked = newClient({ baseURL: given.lockedURL, apiKey: "wrong" });
const opened = newClient({ baseURL: given.lockedURL, apiKey: given.apiKey });

const ask = (asked, options) =>
  asked.audio.transcriptions.create({ file: fs.createReadStream(given.path), model: "demo", ...options });

answer({
  field: await faultOf(() => ask(client, { response_format: "yaml" })),
  file: await faultOf(() => ask(client, { file: new File(["no audio"], "a.wav") })),
  model: await faultOf(() => ask(client, { model: "nobody" })),
  streamedModel: await faultOf(() => ask(client, { model: "nobody", stream: true })),
  unknownModel: await faultOf(() => client.models.retrieve("nobody")),
  tooLarge: await faultOf(() => ask(limited, { file: new File([Buffer.alloc(given.bytes)], "a.wav") })),
  tooLargeChunked: await faultOf(() => ask(limited, { file: fs.createReadStream(given.largePath) })),
  wrongKey: await faultOf(() => ask(locked)),
  rightKey: await faultOf(() => ask(opened)),
  chat: await faultOf(() => client.chat.completions.create({ model: "demo", messages: [] })),
});
