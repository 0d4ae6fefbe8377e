// Vercel's AI SDK, which validates each answer. With provider options it asks for verbose_json.
import fs from "node:fs";

import { createOpenAI } from "@ai-sdk/openai";
import { experimental_transcribe as transcribe } from "ai";

import { answer, given } from "./program.mjs";

const openai = createOpenAI({ baseURL: given.baseURL, apiKey: "none-needed" });
const results = [];
for (const providerOptions of given.providerOptions) {
  const { text, segments, language, durationInSeconds, warnings, responses } = await transcribe({
    model: openai.transcription(given.model ?? "demo"),
    audio: fs.readFileSync(given.path),
    maxRetries: 0,
    ...(providerOptions && { providerOptions: { openai: providerOptions } }),
  });
  results.push({ text, segments, language, durationInSeconds, warnings, body: responses[0].body });
}
answer(results);
