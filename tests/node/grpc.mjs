// A gRPC client made from the proto alone: one live session, one whole recording, and one refusal.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

import { answer, given } from "./program.mjs";

const PROTOS = fileURLToPath(new URL("../../proto", import.meta.url));

const { stt } = grpc.loadPackageDefinition(
  loader.loadSync("stt/v1/stt.proto", { includeDirs: [PROTOS], keepCase: true, enums: String, defaults: true, oneofs: true }),
);

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

function stream(client, created, pcm, chunkBytes) {
  return new Promise((resolve, reject) => {
    const heard = { texts: [], words: [], partials: 0 };
    const duplex = client.StreamingRecognize();
    duplex.on("data", ({ event, result }) => {
      if (event === "result" && result.is_final) {
        heard.texts.push(result.text);
        heard.words.push(...result.words.map((word) => word.text));
      } else if (event === "result") {
        heard.partials += 1;
      }
    });
    duplex.on("error", reject);
    duplex.on("status", (status) => {
      heard.count = Number(status.metadata.get("stt-decode-count")[0]);
      resolve(heard);
    });
    for (let start = 0; start < pcm.length; start += chunkBytes) {
      duplex.write({
        session_id: created.session_id,
        session_token: created.session_token,
        audio: pcm.subarray(start, start + chunkBytes),
      });
    }
    duplex.end();
  });
}

const client = new stt.v1.SpeechToText(given.address, grpc.credentials.createInsecure());
const config = { model: "demo", language: "en" };
const created = await call(client, "CreateSession", { session_id: "from node", config, require_token: true });
const heard = await stream(client, created, readFileSync(given.wav).subarray(44), 3200);
const recognized = await call(client, "Recognize", { audio: readFileSync(given.file), config: { model: "demo" } });
const refused = await call(client, "CreateSession", {}).catch((error) => error);
client.close();
answer({
  language: created.config.language,
  tokenCharacters: created.session_token.length,
  heard,
  recognized: recognized.text,
  refused: { code: grpc.status[refused.code], details: refused.details },
});
