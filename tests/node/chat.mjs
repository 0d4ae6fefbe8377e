// A chat completion of one recording, whole and in chunks.
import fs from "node:fs";

import { answer, given, newClient } from "./program.mjs";

const client = newClient();
const request = {
  model: "demo",
  temperatures: [0],
  messages: [
    {
      role: "user",
      content: [
        { type: "text", text: "Write down what is said." },
        { type: "input_audio", input_audio: { data: fs.readFileSync(given.path, "base64"), format: "wav" } },
      ],
    },
  ],
};

const chunks = [];
const stream = await client.chat.completions.create({
  ...request,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  chunks.push(chunk);
}
const helper = client.chat.completions.stream(request);
answer({
  plain: await client.chat.completions.create(request),
  chunks,
  gathered: await helper.finalContent(),
});
