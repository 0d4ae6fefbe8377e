// Every response format, as the SDK hands it out.
import fs from "node:fs";

import { answer, given, newClient } from "./program.mjs";

const client = newClient();
const ask = (options) =>
  client.audio.transcriptions.create({
    file: fs.createReadStream(given.path),
    model: "demo",
    temperatures: [0],
    ...options,
  });

answer({
  json: await ask({}),
  text: await ask({ response_format: "text" }),
  srt: await ask({ response_format: "srt" }),
  vtt: await ask({ response_format: "vtt" }),
  verbose: await ask({ response_format: "verbose_json" }),
  words: await ask({ response_format: "verbose_json", timestamp_granularities: ["word"] }),
  both: await ask({ response_format: "verbose_json", timestamp_granularities: ["word", "segment"] }),
  logprobs: await ask({ include: ["logprobs"] }),
  cutAtSilences: await ask({ chunking_strategy: { type: "server_vad", threshold: 0.4 } }),
});
