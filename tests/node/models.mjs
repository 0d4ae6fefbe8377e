// The names of the models, one of them by a name with a slash, and one unloaded.
import { answer, faultOf, given, newClient } from "./program.mjs";

const client = newClient();
const ids = [];
for await (const model of client.models.list()) {
  ids.push(model.id);
}
answer({
  ids,
  retrieved: await client.models.retrieve(given.name),
  deleted: await client.models.delete(given.name),
  deletedTwice: await faultOf(() => client.models.delete(given.name)),
});
