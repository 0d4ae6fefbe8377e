// Vercel's AI SDK on chat completions, plain and as a stream.
import fs from "node:fs";

import { createOpenAI } from "@ai-sdk/openai";
import { generateText, streamText } from "ai";

import { answer, given } from "./program.mjs";

const openai = createOpenAI({ baseURL: given.baseURL, apiKey: "none-needed" });
const request = {
  model: openai.chat("demo"),
  maxRetries: 0,
  messages: [
    {
      role: "user",
      content: [{ type: "file", mediaType: "audio/wav", data: fs.readFileSync(given.path) }],
    },
  ],
};
const plain = await generateText(request);
const streamed = streamText(request);
const deltas = [];
for await (const delta of streamed.textStream) {
  deltas.push(delta);
}
answer({ text: plain.text, usage: plain.usage, finishReason: plain.finishReason, deltas });
