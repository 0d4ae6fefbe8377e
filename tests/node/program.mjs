// What the programs here share: a JSON object comes as the only argument, and a JSON value goes to stdout.
import OpenAI from "openai";

export const given = JSON.parse(process.argv[2]);

// It does not retry, so that each fault shows.
export const newClient = (options = {}) =>
  new OpenAI({ baseURL: given.baseURL, apiKey: "none-needed", maxRetries: 0, ...options });

export const answer = (value) => process.stdout.write(JSON.stringify(value));

// What a call comes to: the error as programs see it, or null where there was none.
export const faultOf = async (call) => {
  try {
    await call();
    return null;
  } catch (error) {
    return {
      class: error.constructor.name,
      status: error.status ?? null,
      type: error.type ?? null,
      code: error.code ?? null,
      param: error.param ?? null,
      requestID: error.requestID ?? null,
      message: error.message,
    };
  }
};
