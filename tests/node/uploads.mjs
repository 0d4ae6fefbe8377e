// The same recording in every shape in which Node has files, and whether its body came without Content-Length.
import fs from "node:fs";

import { toFile } from "openai";

import { answer, given, newClient } from "./program.mjs";

const bytes = fs.readFileSync(given.path);
const shapes = {
  readStream: () => fs.createReadStream(given.path),
  file: () => new File([bytes], "café ☕.wav", { type: "audio/x-wav" }),
  webmFile: () => new File([bytes], "blob", { type: "audio/webm;codecs=opus" }),
  namelessFile: () => toFile(bytes),
  response: () => new Response(new Blob([bytes])),
};

const results = {};
for (const [shape, make] of Object.entries(shapes)) {
  let isChunked;
  const client = newClient({
    fetch: (url, init) => {
      isChunked = init.body instanceof ReadableStream;
      return fetch(url, init);
    },
  });
  const transcription = await client.audio.transcriptions.create({
    file: await make(),
    model: "demo",
    temperatures: [0],
  });
  results[shape] = { text: transcription.text, isChunked };
}

// A browser's recorder: a Blob in a FormData, without the SDK.
const form = new FormData();
form.append("file", new Blob([bytes], { type: "audio/webm;codecs=opus" }));
form.append("model", "demo");
form.append("temperatures[]", "0");
const response = await fetch(`${given.baseURL}/audio/transcriptions`, { method: "POST", body: form });
results.formData = { ...(await response.json()), isChunked: false };

answer(results);
