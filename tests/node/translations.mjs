// A translation in every form the SDK offers.
import fs from "node:fs";

import { answer, given, newClient } from "./program.mjs";

const client = newClient();
const ask = (options) =>
  client.audio.translations.create({
    file: fs.createReadStream(given.path),
    model: "demo",
    temperatures: [0],
    ...options,
  });

answer({
  json: await ask({}),
  text: await ask({ response_format: "text" }),
  verbose: await ask({ response_format: "verbose_json" }),
});
